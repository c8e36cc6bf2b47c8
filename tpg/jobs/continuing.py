"""A run that is continued: its config, what may be given anew beside `resume=`, and what is said when it stops."""

import shutil
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from tpg.errors import UserError
from tpg.launching import slurm

SINGLE = frozenset({"iterations", "update.tokens_per_microbatch"})
HARDWARE = frozenset({"accelerator", "strategy", "devices", "num_nodes", "tensor_parallel", "timeout_s"})
"""Keys of `trainer` that change where a run computes and none of its numbers."""


def continued_run(config: DictConfig, overrides: Sequence[str]) -> tuple[Path, dict[str, Any]]:
    """The folder that `resume` names, and its config with what the command line changes of it.

    Raises `UserError` if it holds no run, and as `continued_config`.
    """
    from tpg.training.run_folder import RunFolder

    try:
        folder = RunFolder.opened(Path(config.resume))
    except UserError as error:
        raise UserError(f"resume={error}") from None
    return folder.path, continued_config(folder.config, config, overrides)


def continued_config(path: Path, given: DictConfig, overrides: Sequence[str]) -> dict[str, Any]:
    """The run's own config with what the command line changes of it.

    Raises `UserError` for an override that would change numbers of iterations past.
    """
    stored: Any = OmegaConf.load(path)
    for override in overrides:
        key = override.lstrip("+~").split("=")[0]
        group, _, rest = key.partition(".")
        if key in SINGLE or (group == "trainer" and rest in HARDWARE):
            OmegaConf.update(stored, key, OmegaConf.select(given, key), force_add=True)
        elif key == "trainer":
            stored.trainer.update({name: given.trainer[name] for name in sorted(HARDWARE)})
        elif key == "guards":
            stored.guards = given.guards
        elif group == "guards" and override.startswith("~"):
            owner, _, name = key.rpartition(".")
            (OmegaConf.select(stored, owner) or {}).pop(name, None)
        elif group == "guards":
            OmegaConf.update(stored, key, OmegaConf.select(given, key), force_add=True)
        elif key != "resume":
            raise UserError(
                f"{key}: resume continues with the run's own config; only iterations=, guards, the trainer's devices"
                " and update.tokens_per_microbatch= may be given beside it"
            )
    plain: Any = OmegaConf.to_container(stored)
    return plain


def say_how_to_continue(entry: str, config: DictConfig, path: Path, number: int, *, requeue: bool) -> None:
    """What to type after signal `number` has stopped the run in `path`; under SLURM its job may be put back instead."""
    job = slurm.job_id()
    if number == signal.SIGUSR1 and job is not None and requeue:
        if config.run_dir is not None or config.resume is not None:
            print(slurm.requeued(job), file=sys.stderr)
            return
        print("not requeued: without run_dir= the job would begin another run", file=sys.stderr)
    if (path / "config.yaml").is_file():
        print(f"interrupted; continue with: python -m {entry} resume={path}", file=sys.stderr)
    else:
        print("interrupted before anything was written; give the same command again", file=sys.stderr)


def clear_unborn(path: Path) -> None:
    """Remove what is left of a run's folder that was being made when its process was killed."""
    left = {item.name for item in path.iterdir()} if path.is_dir() else set()
    if left and left <= {"checkpoints", "config.tmp"} and not any(path.glob("checkpoints/*")):
        shutil.rmtree(path, ignore_errors=True)  # another rank may do so too
