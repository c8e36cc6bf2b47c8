"""What a run leaves on disk, and how it is cut back to a checkpoint."""

import csv
import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tpg.errors import UserError


class RunFolder:
    """A folder with config.yaml, metrics.csv, completions.jsonl, tokens/, checkpoints/ and, at the end, the rest."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config = path / "config.yaml"
        self.metrics = path / "metrics.csv"
        self.completions = path / "completions.jsonl"
        self.tokens = path / "tokens"
        self.checkpoints = path / "checkpoints"
        self.policy = path / "policy"
        self.summary = path / "summary.json"
        self.precision = path / "precision.json"
        self.learning_curve = path / "learning_curve.png"
        self.writes = True
        """Whether this process writes in it, or another one for all."""
        self._columns: list[str] = []

    @staticmethod
    def refuse_other_run(path: Path) -> None:
        """Raise `UserError` if the folder holds anything."""
        if path.exists() and (not path.is_dir() or any(path.iterdir())):
            raise UserError(
                f"run_dir={path} is not empty; choose another folder, or continue the run in it with resume={path}"
            )

    @classmethod
    def opened(cls, path: Path) -> "RunFolder":
        """The folder of an existing run. Raises `UserError` if there is none."""
        folder = cls(path)
        if not folder.config.is_file():
            raise UserError(f"{path} holds no run: there is no {folder.config.name} in it")
        return folder

    def create(self, config: str) -> None:
        """Make it, with the run's config."""
        self.path.mkdir(parents=True, exist_ok=True)
        self.checkpoints.mkdir()
        write_atomically(self.config, config)

    def newest_checkpoint(self) -> Path | None:
        """The checkpoint of the latest iteration."""
        return max(self.checkpoints.glob("iteration-*.ckpt"), default=None)

    def clear_staging(self) -> None:
        """Remove what a killed process was writing."""
        for place in (self.path, self.checkpoints, self.tokens):
            for left in place.glob("*.tmp"):
                shutil.rmtree(left) if left.is_dir() else left.unlink()

    def flush(self) -> None:
        """Bring what was appended to the disk, so that no checkpoint is ahead of it."""
        for path in (self.metrics, self.completions):
            if self.writes and path.exists():
                _to_disk(path)

    @staticmethod
    def iteration_of(checkpoint: Path | None) -> int:
        """The iteration that a checkpoint closes; 0 without one."""
        return int(checkpoint.stem.split("-")[1]) if checkpoint else 0

    def rows(self) -> list[dict[str, str]]:
        """Metrics as text, a row an iteration."""
        if not self.metrics.exists():
            return []
        with self.metrics.open(newline="") as file:
            complete = [row for row in csv.DictReader(file) if None not in row.values()]
        return [row for row in complete if row["iteration"].isdigit()]

    def cut_back(self, iteration: int) -> None:
        """Forget what was written of later iterations, a torn last line included."""
        if not self.writes:
            return
        rows = [row for row in self.rows() if int(row["iteration"]) <= iteration]
        self._rewrite_metrics(rows)
        if self.completions.exists():
            # Not `splitlines`: responses hold other line separators too. A torn last line may end inside a character.
            lines = self.completions.read_text(encoding="utf-8", errors="replace").split("\n")
            kept = [line for line in lines if (_iteration_of(line) or iteration + 1) <= iteration]
            write_atomically(self.completions, "".join(line + "\n" for line in kept))
        for file in self.tokens.glob("iteration-*"):
            if file.suffix != ".jsonl" or int(file.stem.removeprefix("iteration-")) > iteration:
                file.unlink()

    def add_row(self, row: Mapping[str, float]) -> None:
        """Append an iteration's metrics; a new column leaves earlier rows empty there."""
        if not self.writes:
            return
        new = [name for name in row if name not in self._columns]
        if new:
            rows = self.rows()
            self._columns += new
            self._rewrite_metrics(rows)
        with self.metrics.open("a", newline="") as file:
            csv.DictWriter(file, self._columns).writerow(row)

    def add_completions(self, records: Sequence[Mapping[str, Any]]) -> None:
        """Append an iteration's completions, a JSON object a line."""
        if not self.writes:
            return
        with self.completions.open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(record, ensure_ascii=False) + "\n" for record in records)

    def write_tokens(self, iteration: int, lines: Sequence[str]) -> None:
        """An iteration's record of tokens, a JSON object a line."""
        if not self.writes:
            return
        self.tokens.mkdir(exist_ok=True)
        write_atomically(self.tokens / f"iteration-{iteration:06d}.jsonl", "".join(line + "\n" for line in lines))

    def write_policy(self, save: Callable[[Path], None]) -> None:
        """The final policy, by what writes it into a folder."""
        staging = self.policy.with_suffix(".tmp")
        shutil.rmtree(staging, ignore_errors=True)
        save(staging)
        for file in staging.iterdir():
            _to_disk(file)
        shutil.rmtree(self.policy, ignore_errors=True)
        put_in_place(staging, self.policy)

    def _rewrite_metrics(self, rows: list[dict[str, str]]) -> None:
        self._columns = self._columns or (list(rows[0]) if rows else ["iteration"])
        staging = self.metrics.with_suffix(".tmp")
        with staging.open("w", newline="") as file:
            writer = csv.DictWriter(file, self._columns)
            writer.writeheader()
            writer.writerows(rows)
        put_in_place(staging, self.metrics)


def _iteration_of(line: str) -> int | None:
    try:
        return int(json.loads(line)["iteration"])
    except (ValueError, KeyError, TypeError):
        return None


def write_atomically(path: Path, text: str) -> None:
    """The whole text or the file as it was."""
    staging = path.with_suffix(".tmp")
    staging.write_text(text, encoding="utf-8")
    put_in_place(staging, path)


def put_in_place(staging: Path, path: Path) -> None:
    """Give a file that is written its name, so that whatever happens the name stands for all of it or for the old."""
    _to_disk(staging)
    staging.replace(path)
    _to_disk(path.parent)


def _to_disk(path: Path) -> None:
    """Wait until a file's content, or a folder's names, would outlast a power failure."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
