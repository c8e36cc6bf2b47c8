"""A pipeline's folder: a folder for each stage, what they were run with, and those set aside."""

import fcntl
import json
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tpg.errors import UserError
from tpg.training.run_folder import write_atomically

PATIENCE_S = 60.0
"""How long to wait for a stage whose pipeline was killed to end."""


class PipelineFolder:
    """`<stage>/` for each, `pipeline.yaml`, `pipeline/<stage>.json` and `outdated/<stage>-<n>/`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.definition = path / "pipeline.yaml"
        self.records = path / "pipeline"
        self.outdated = path / "outdated"

    def refuse_other(self) -> None:
        """Raise `UserError` if there is something in it that is no pipeline's."""
        if self.definition.is_file() or not self.path.exists():
            return
        begun = {self.records, self.definition.with_suffix(".tmp")}  # all there is where it was killed that early
        if not self.path.is_dir() or set(self.path.iterdir()) - begun:
            raise UserError(f"run_dir={self.path} is not empty and holds no pipeline; choose another folder")

    def stage(self, name: str) -> Path:
        """The folder that a stage runs in."""
        return self.path / name

    def record(self, name: str) -> dict[str, Any] | None:
        """What a stage was begun with, if it was."""
        path = self.records / f"{name}.json"
        try:
            return dict(json.loads(path.read_text(encoding="utf-8")))
        except (FileNotFoundError, ValueError):
            return None

    def keep(self, name: str, record: Mapping[str, Any]) -> None:
        """Note what a stage is begun with."""
        write_atomically(self.records / f"{name}.json", json.dumps(record, indent=1) + "\n")

    def forget(self, name: str) -> None:
        """As if the stage had never been begun."""
        (self.records / f"{name}.json").unlink(missing_ok=True)

    def set_aside(self, name: str) -> Path | None:
        """Move what a stage left out of the way; where to, or None if there is nothing."""
        folder = self.stage(name)
        if not folder.is_dir() or not any(folder.iterdir()):
            return None
        self.outdated.mkdir(exist_ok=True)
        taken = {each.name for each in self.outdated.iterdir()}
        number = next(n for n in range(1, len(taken) + 2) if f"{name}-{n}" not in taken)
        return folder.rename(self.outdated / f"{name}-{number}")

    @contextmanager
    def alone(self) -> Iterator[int]:
        """Hold the folder; gives the lock's descriptor, which a stage's process holds too.

        Raises `UserError` when another pipeline works in it. A stage whose pipeline was killed is waited for: it was
        told to stop.
        """
        try:
            self.records.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"run_dir={self.path}: cannot be made: {error.strerror}") from error
        with (self.records / "lock").open("a+", encoding="utf-8") as lock:
            deadline, said = time.monotonic() + PATIENCE_S, False
            while not _locked(lock.fileno()):
                lock.seek(0)
                holder = lock.read().strip()
                if _lives(holder) or time.monotonic() > deadline:
                    whose = f"the process {holder}" if _lives(holder) else "a stage that lost its pipeline"
                    raise UserError(f"run_dir={self.path}: {whose} is at work in it; wait for it, or end it")
                if not said:
                    print("waiting for a stage that lost its pipeline to end", flush=True)
                    said = True
                time.sleep(0.2)
            lock.truncate(0)
            lock.write(str(os.getpid()))
            lock.flush()
            yield lock.fileno()


def _locked(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _lives(process: str) -> bool:
    try:
        os.kill(int(process), 0)
    except (ValueError, ProcessLookupError):
        return False
    except PermissionError:
        return True
    return int(process) != os.getpid()
