"""One stage before reinforcement learning: how every process that takes part in it carries it out."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tpg.errors import UserError, one_line
from tpg.launching.spec import Spec, made
from tpg.policies.memory import ran_out
from tpg.stages.memory import REMEDIES
from tpg.stages.options import Stage
from tpg.stages.run import Kind, StageFolder, run
from tpg.training.checkpoints import StopRequest
from tpg.training.faults.full_disk import is_full
from tpg.training.parallel.ranks import Ranks
from tpg.training.preparation import quiet_libraries


def carry_out(kind: Kind[Any, Any], spec: Spec[Stage], ranks: Ranks | None = None) -> dict[str, Any]:
    """Load, make the folder, train; returns the summary. Every process of `ranks` calls this.

    Raises `UserError` for what cannot be loaded, on every process and before there is a folder, and where the disk is
    full or memory runs out; `Interrupted` when SIGTERM, SIGINT or the stop file asked for a stop.
    """
    ranks = ranks or Ranks()
    quiet_libraries()
    stop = StopRequest(spec.stop_file)
    stop.install()
    module, notes = ranks.together(lambda: kind.prepare(spec.experiment))
    ranks.each(stop.check)
    folder = StageFolder(spec.path, kind.model)
    with _told(kind, folder.path):
        ranks.from_main(lambda: made(folder, spec))
        return run(kind, spec.experiment, spec.config, module, notes, folder, stop, ranks)


@contextlib.contextmanager
def _told(kind: Kind[Any, Any], path: Path) -> Iterator[None]:
    """One line with the remedy where the disk is full or memory runs out."""
    try:
        yield
    except Exception as error:
        if isinstance(error, UserError):
            raise
        go_on = f"continue with python -m {kind.entry} resume={path}"
        if is_full(error):
            raise UserError(f"no space left to write in {path} ({one_line(error)}): free some, and {go_on}") from error
        if ran_out(error):
            raise UserError(
                f"out of memory: {REMEDIES}, or a smaller tokens_per_microbatch; {go_on} tokens_per_microbatch=..."
            ) from error
        raise
