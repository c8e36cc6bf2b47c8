"""What is known of a sweep's jobs, in files that every launcher's processes share."""

import fcntl
import json
import os
import platform
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from hashlib import sha1
from pathlib import Path
from typing import Any, Literal, TypeAlias

from hydra.core.override_parser.overrides_parser import OverridesParser

from tpg.errors import UserError

State: TypeAlias = Literal["refused", "running", "finished", "skipped", "failed", "interrupted", "not begun"]


@dataclass(frozen=True)
class Launch:
    """One call of a sweep: what its jobs must know of it, wherever they run."""

    folder: Path
    """The sweep's, absolute."""
    command: list[str]
    """The overrides that were given, those that are swept included."""
    wants_traceback: bool
    jobs: int | None = None
    """How many, where that is known before."""
    continues: bool = True
    """Whether the same command goes on with what its jobs left."""
    id: str = field(default_factory=lambda: os.urandom(4).hex())
    pid: int = field(default_factory=os.getpid)

    @classmethod
    def opened(cls, folder: Path) -> "Launch":
        """The latest call of the sweep in this folder."""
        told = json.loads((folder / ".jobs" / ".launch.json").read_text(encoding="utf-8"))
        return cls(**{**told, "folder": folder})

    def begin(self) -> None:
        """Make the folder, and let the jobs find this call in it."""
        (self.folder / ".jobs").mkdir(parents=True, exist_ok=True)
        self.stop.unlink(missing_ok=True)
        _write(self.folder / ".jobs" / ".launch.json", {**asdict(self), "folder": None})

    @property
    def stop(self) -> Path:
        """Holds the number of the signal that asked the whole sweep to stop."""
        return self.folder / ".jobs" / ".stop"

    def request_stop(self, number: int) -> None:
        """Ask every job, in whatever process, to stop at its next boundary, and those that wait not to begin."""
        staging = self.stop.with_suffix(".tmp")
        staging.write_text(str(number))
        staging.replace(self.stop)

    def records(self) -> "list[Record]":
        """What became of this call's jobs, in their order."""
        found = [read_record(path) for path in (self.folder / ".jobs").glob("*.json") if path.name[0] != "."]
        return sorted((record for record in found if record and record.launch == self.id), key=lambda r: r.number)


LAUNCHED: list[Launch] = []
"""The sweep that this process leads, if it leads one; its jobs may run in other processes."""


@dataclass
class Record:
    """What became of a job."""

    launch: str
    number: int
    name: str
    overrides: list[str]
    """Those of the job's overrides that the sweep varies."""
    folder: str
    state: State
    pid: int
    host: str
    complete: bool
    """Whether the job's folder holds all that it should, be it of an earlier call."""
    seconds: float = 0.0
    value: float | None = None
    code: int = 0
    error: str | None = None
    told: bool = False
    """Whether the error is on the screen of the sweep's own process."""

    @property
    def label(self) -> str:
        """The job as one speaks of it."""
        return f"job {self.number} ({' '.join(self.overrides)})" if self.overrides else f"job {self.number}"


class Job:
    """One job of a sweep, with the record of its latest try."""

    def __init__(self, launch: Launch, number: int, overrides: Sequence[str], folder: Path | None, default: str):
        self.launch = launch
        self.number = number
        self.swept = swept_overrides(overrides, launch.command)
        self.name = job_name(self.swept) or default
        self.folder = (folder or launch.folder / self.name).absolute()
        self._path = launch.folder / ".jobs" / f"{self.name}.json"
        self.earlier = read_record(self._path)

    def note(self, state: State, **facts: Any) -> Record:
        """Keep what became of the job."""
        before = self.earlier is not None and self.earlier.complete
        complete = state in ("finished", "skipped") or (before and state in ("refused", "not begun"))
        if before and self.earlier is not None and complete:
            facts = {"value": self.earlier.value, "seconds": self.earlier.seconds, **facts}
        record = Record(
            launch=self.launch.id,
            number=self.number,
            name=self.name,
            overrides=list(self.swept),
            folder=str(self.folder),
            state=state,
            pid=os.getpid(),
            host=platform.node(),
            complete=complete,
            **facts,
        )
        _write(self._path, asdict(record))
        return record

    @property
    def config(self) -> Path:
        """The config that the job ran with: in its folder, or beside its record if the entry leaves none there."""
        own = self.folder / "config.yaml"
        return own if own.is_file() else self._path.with_suffix(".yaml")

    def keep_config(self, text: str) -> None:
        """Beside the record."""
        self._path.with_suffix(".yaml").write_text(text, encoding="utf-8")

    def keep_traceback(self, text: str) -> Path:
        """Where the text is kept."""
        path = self._path.with_suffix(".traceback.txt")
        path.write_text(text, encoding="utf-8")
        return path

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Keep other processes, such as those of an earlier call that was killed, from running this job beside us."""
        with self._path.with_suffix(".lock").open("w") as file:
            try:
                # A record lock: it ends with this process, and the processes that this one starts do not hold it.
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                other = f"process {self.earlier.pid} on {self.earlier.host}" if self.earlier else "another process"
                raise UserError(f"run_dir={self.folder}: {other} is still running this job") from error
            yield


def swept_overrides(overrides: Sequence[str], command: Sequence[str]) -> list[str]:
    """The job's overrides that the sweep varies or that its sweeper adds, sorted."""
    parser = OverridesParser.create()
    given = parser.parse_overrides(list(command))
    fixed = {override.key_or_group for override in given if not override.is_sweep_override()}
    of_job = parser.parse_overrides(list(overrides))
    return sorted(str(o.input_line) for o in of_job if o.key_or_group not in fixed and not o.is_hydra_override())


def job_name(swept: Sequence[str]) -> str:
    """A folder's name that overrides always get, in whatever order and number of jobs they come.

    >>> job_name(["algorithm=grpo", "optimizer.lr=1e-5"])
    'algorithm_grpo-lr_1e-5'
    """
    keys = [override.partition("=")[0].lstrip("+~") for override in swept]
    last = [key.replace("/", ".").rpartition(".")[2] for key in keys]
    short = [name if last.count(name) == 1 else key for name, key in zip(last, keys, strict=True)]
    whole = "-".join(f"{k}_{override.partition('=')[2]}" for k, override in zip(short, swept, strict=True))
    plain = re.sub(r"[^A-Za-z0-9_.+-]+", "-", whole).strip("-.")
    if plain == whole and len(whole) <= 100:
        return whole
    return f"{plain[:90]}-{sha1(' '.join(swept).encode()).hexdigest()[:6]}"


def read_record(path: Path) -> Record | None:
    """The record in a file, if it is there and whole."""
    try:
        return Record(**json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def _write(path: Path, facts: dict[str, Any]) -> None:
    staging = path.with_suffix(f".{os.getpid()}.tmp")
    staging.write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    staging.replace(path)
