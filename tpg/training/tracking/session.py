"""The loggers of a run, from its start to its end, and what they are told of where it comes from."""

import contextlib
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any

import torch

from tpg.errors import Interrupted, UserError, with_kind
from tpg.redaction import redacted
from tpg.training.pruning import Pruned
from tpg.training.run_folder import RunFolder, write_atomically
from tpg.training.tracking.loggers import LoggerOptions, Outcome, Start
from tpg.training.tracking.tolerant import Tolerant

SEEN = ("tpg", "torch", "transformers", "lightning", "peft", "datasets")
"""Packages whose versions go to the loggers; environment.json has all."""
UNTRACKED = 100
"""Names of files unknown to git that are written down."""


class Tracking:
    """Opens every logger, and closes each however the run ends."""

    def __init__(
        self, options: Mapping[str, LoggerOptions], folder: RunFolder, config: Mapping[str, Any], iteration: int
    ) -> None:
        if not folder.writes:  # another process logs for all
            options = {}
        environment = record_environment(folder.path, iteration, writes=folder.writes)
        told = {name: value for name, value in environment.items() if name != "packages"}
        told["versions"] = {name: environment["packages"].get(name, "") for name in SEEN}
        self.options = options
        self.folder = folder
        self.start = Start(
            folder=folder.path,
            run_id=str(config["run_id"]),
            config={**config, "environment": told},
            iteration=iteration,
            files=(folder.path / "environment.json", *sorted(folder.path.glob("code*.diff"))),
        )
        self.loggers: list[Any] = []
        self._opened: list[tuple[LoggerOptions, Any]] = []
        self._closing = contextlib.ExitStack()

    def __enter__(self) -> "Tracking":
        with contextlib.ExitStack() as opened:
            for name, options in self.options.items():
                logger = self._built(name, options)
                if logger is not None:
                    tolerant = Tolerant(name, logger)
                    self.loggers.append(tolerant)
                    self._opened.append((options, logger))
                    opened.push(partial(_close, options, logger, tolerant))
            self._closing = opened.pop_all()
        return self

    def _built(self, name: str, options: LoggerOptions) -> Any:
        """The logger; none where it cannot be begun, which is said. Raises `UserError` for a mistake in its options."""
        try:
            return options.build(self.start)
        except (UserError, Interrupted):
            raise
        except Exception as error:
            print(
                f"warning: logger.{name}: {with_kind(error)}; the run goes on without it; metrics.csv has every row",
                file=sys.stderr,
            )
            return None

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Tell every logger how a complete run ended."""
        for (options, logger), tolerant in zip(self._opened, self.loggers, strict=True):
            tolerant.tried(partial(options.finish, logger, self.folder.path, summary))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closing.__exit__(kind, error, trace)


def _close(
    options: LoggerOptions,
    logger: Any,
    tolerant: Tolerant,
    kind: type[BaseException] | None,
    error: BaseException | None,
    trace: TracebackType | None,
) -> None:
    outcome: Outcome = "failed"
    if error is None:
        outcome = "finished"
    elif isinstance(error, Pruned):
        outcome = "pruned"
    elif isinstance(error, Interrupted):
        outcome = "interrupted"
    tolerant.tried(partial(options.close, logger, outcome))


def record_environment(folder: Path, iteration: int, *, writes: bool = True) -> dict[str, Any]:
    """Write what this start of a run computes with to environment.json, a record a start, and return it.

    Uncommitted changes go to code.diff; those of a start that continues after iteration i to code-i.diff.
    """
    name = f"code-{iteration:06d}.diff" if iteration else "code.diff"
    repositories, diffs = [], []
    for root in _repositories():
        described, diff = _described(root)
        repositories.append(described)
        diffs.append(diff)
    record = {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "after_iteration": iteration,
        "command": [Path(sys.argv[0]).name, *map(redacted, sys.argv[1:])],
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        "cuda": torch.version.cuda,
        "git": repositories,
        "diff": name if any(diffs) else None,
        "packages": dict(sorted((each.name, each.version) for each in importlib.metadata.distributions())),
    }
    if not writes:
        return record
    path = folder / "environment.json"
    earlier = json.loads(path.read_text()) if path.exists() else []
    write_atomically(path, json.dumps([*earlier, record], indent=1) + "\n")
    if any(diffs):
        write_atomically(folder / name, redacted("".join(diffs)))
    return record


def _repositories() -> list[Path]:
    """The git repositories of the working directory and of this package."""
    found = [_git(place, "rev-parse", "--show-toplevel").strip() for place in (Path.cwd(), Path(__file__).parent)]
    return [Path(root) for root in dict.fromkeys(found) if root]


def _described(root: Path) -> tuple[dict[str, Any], str]:
    """A repository's commit and whether its files are those of the commit; and how they differ."""
    diff = _git(root, "diff", "HEAD")
    untracked = _git(root, "ls-files", "--others", "--exclude-standard").splitlines()
    described = {
        "root": str(root),
        "commit": _git(root, "rev-parse", "HEAD").strip() or None,
        "branch": _git(root, "rev-parse", "--abbrev-ref", "HEAD").strip() or None,
        "dirty": bool(diff or untracked),
        "untracked": untracked[:UNTRACKED],
    }
    return described, diff


def _git(place: Path, *words: str) -> str:
    """What git says; nothing where there is no git or no repository, or it takes too long."""
    environment = {**os.environ, "GIT_OPTIONAL_LOCKS": "0"}
    try:
        asked = subprocess.run(
            ["git", "-C", str(place), *words], capture_output=True, timeout=10, env=environment, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return asked.stdout.decode(errors="replace")
