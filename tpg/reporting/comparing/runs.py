"""Runs as reports read them, from the folders that `tpg.train` leaves."""

import csv
import glob
import json
import math
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from tpg.errors import UserError, one_line
from tpg.reporting.guard_records import NAME, Span, read_records, spans
from tpg.spelling import did_you_mean

OWN_KEYS = {"seed", "iterations", "policy", "task", "estimator", "rollout"}
"""What the config of a run has, and that of other programs has not."""


@dataclass(frozen=True)
class Run:
    """A run as far as it has come; its rows hold only what was measured."""

    name: str
    place: str
    """Its folder, or its address."""
    config: dict[str, Any]
    rows: list[dict[str, float]]
    """Metrics, a row an iteration."""
    final: dict[str, float] = field(default_factory=dict)
    """Measures of the final policy."""
    finished: bool = False
    completions: Path | None = None
    guards: list[Span] = field(default_factory=list)
    """What the guards said while it ran."""

    @property
    def seed(self) -> int:
        """The seed, which sets it apart from the other runs of its method."""
        return int(self.config.get("seed", 0))

    @property
    def state(self) -> str:
        """How far it has come, in words."""
        if self.finished:
            return "finished"
        return f"unfinished, {len(self.rows)} of {self.config.get('iterations', '?')} iterations"

    @property
    def tokens(self) -> float:
        """Tokens that were generated."""
        return self.rows[-1].get("num_tokens", math.nan) if self.rows else 0.0

    @property
    def seconds(self) -> float:
        """Time of all iterations."""
        return sum(row.get("step_time", 0.0) for row in self.rows)

    def column(self, name: str) -> list[float]:
        """A metric's finite values, in the order of the iterations."""
        return [row[name] for row in self.rows if math.isfinite(row.get(name, math.nan))]


@dataclass(frozen=True)
class Found:
    """Runs, and what was passed over on the way with the reason."""

    runs: list[Run]
    notes: list[str]


def find_runs(places: Sequence[str]) -> Found:
    """Every run in or below the folders that the places name; a place may be a glob.

    Raises `UserError` for a place that is not there, and when there is no run at all.
    """
    folders = [folder for place in places for folder in _folders_of(place)]
    top = Path(os.path.commonpath([folder.resolve() for folder in folders]))
    found: dict[Path, Run] = {}
    notes: list[str] = []
    for folder in folders:
        for path in _configs_below(folder):
            if path.parent.resolve() not in found:
                run = _read(path.parent, top, notes)
                if run is not None:
                    found[path.parent.resolve()] = run
    if not found:
        passed = f" ({'; '.join(notes)})" if notes else ""
        raise UserError(f"runs={','.join(places)}: no run in it or below: no config.yaml of tpg.train{passed}")
    return Found(list(found.values()), notes)


def open_run(place: str) -> tuple[Run, list[str]]:
    """The run in a folder, with notes on what could not be read. Raises `UserError` if it holds none."""
    folder, notes = Path(place), list[str]()
    if not folder.is_dir():
        raise UserError(f"{place}: no such folder{_near(place)}")
    run = _read(folder, folder.resolve(), notes) if (folder / "config.yaml").is_file() else None
    if run is None:
        below = "; name one of those below it" if not notes and any(_configs_below(folder)) else ""
        raise UserError(f"{place}: holds no run: {notes[0] if notes else 'there is no config.yaml in it'}{below}")
    if not run.rows:
        raise UserError(f"{place}: the run in it has finished no iteration yet")
    return run, notes


def _folders_of(place: str) -> list[Path]:
    if Path(place).is_dir():
        return [Path(place)]
    matches = [Path(match) for match in sorted(glob.glob(place, recursive=True), key=natural) if Path(match).is_dir()]
    if matches:
        return matches
    if glob.has_magic(place):
        raise UserError(f"runs={place}: matches no folder")
    raise UserError(f"runs={place}: no such folder{_near(place)}")


def _near(place: str) -> str:
    """The folders beside it with a similar name."""
    parent = Path(place).parent
    near = [other.name for other in parent.iterdir() if other.is_dir()] if parent.is_dir() else []
    return did_you_mean(Path(place).name, near)


def _configs_below(folder: Path) -> Iterator[Path]:
    """Every config.yaml, but not what lies within a run."""
    for root, names, files in os.walk(folder):
        names.sort(key=natural)
        if "config.yaml" in files:
            if {"metrics.csv", "checkpoints"} & {*names, *files}:
                names.clear()
            yield Path(root, "config.yaml")


def natural(name: str) -> list[tuple[int, str]]:
    """A key that sorts 9 before 10."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"([0-9]+)", name)]


def _read(folder: Path, top: Path, notes: list[str]) -> Run | None:
    """The folder's run, or None with a note if it holds something else."""
    name = str(folder.resolve().relative_to(top))
    name = folder.resolve().name if name == "." else name
    if (folder / "audit.json").is_file():
        notes.append(f"{name} is an audit")
        return None
    try:
        config: Any = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        notes.append(f"{name}/config.yaml cannot be read: {one_line(error)}")
        return None
    if not isinstance(config, dict) or not config.keys() >= OWN_KEYS:
        notes.append(f"{name} is no run of tpg.train")
        return None
    rows = _rows(folder / "metrics.csv", name, notes)
    summary = _summary(folder / "summary.json", name, notes)
    # A finished run that was continued for more iterations still has the summary of its first end.
    finished = summary.get("iterations") == len(rows) >= config["iterations"]
    return Run(
        name=name,
        place=str(folder),
        config=config,
        rows=rows,
        final={key: float(value) for key, value in summary.items() if key.startswith("eval/")} if finished else {},
        finished=finished,
        completions=folder / "completions.jsonl" if (folder / "completions.jsonl").exists() else None,
        guards=spans(read_records(folder / NAME), len(rows)),
    )


def _rows(path: Path, name: str, notes: list[str]) -> list[dict[str, float]]:
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8", errors="replace") as file:
        complete = [row for row in csv.DictReader(file) if None not in row.values() and None not in row]
    rows = []
    for row in complete:
        try:
            rows.append({key: float(value) for key, value in row.items() if value})
        except ValueError:
            notes.append(f"{name}/metrics.csv: a row holds what is no number, and is left out")
    return [row for row in rows if math.isfinite(row.get("iteration", math.nan))]


def _summary(path: Path, name: str, notes: list[str]) -> dict[str, Any]:
    if not path.exists():
        return {}
    try:
        summary = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        notes.append(f"{name}/summary.json cannot be read")
        return {}
    return summary if isinstance(summary, dict) else {}
