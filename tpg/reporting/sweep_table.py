"""What became of a sweep's jobs, as a table for the terminal."""

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from rich.table import Table

STYLES = {"finished": "green", "skipped": "green", "failed": "red", "refused": "red", "died": "red"}


class Row(NamedTuple):
    """A job as the table shows it."""

    number: int
    overrides: str
    seconds: float
    state: str
    folder: Path
    value: float | None


def sweep_table(sweep: Path, rows: Sequence[Row]) -> Table:
    """A row a job: its overrides, rewards first and last, wall seconds, state, and folder within the sweep's."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    for name in ("job", "overrides", "reward", "held out", "seconds", "state", "folder"):
        table.add_column(name, justify="right" if name in ("job", "seconds") else "left", overflow="fold")
    for row in rows:
        state = f"[{STYLES.get(row.state, 'yellow')}]{row.state}[/]"
        seconds = f"{row.seconds:.0f}" if row.seconds else ""
        folder = row.folder.relative_to(sweep) if row.folder.is_relative_to(sweep) else row.folder
        place = str(folder) if row.folder.is_dir() else ""
        rewards = curves(row.folder) or ("" if row.value is None else f"{row.value:.3f}", "")
        table.add_row(str(row.number), row.overrides, *rewards, seconds, state, place)
    return table


def curves(folder: Path) -> tuple[str, str] | None:
    """First and last mean reward of a run's iterations, and of its held-out prompts; None if there are none."""
    try:
        with (folder / "metrics.csv").open(newline="") as file:
            rows = list(csv.DictReader(file))
        trained = [float(row["reward"]) for row in rows if row["reward"]]
        held_out = [float(row["eval/reward"]) for row in rows if row.get("eval/reward")]
    except (OSError, ValueError, KeyError):
        return None
    try:
        summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
        held_out += [float(summary["eval/reward"])] if "eval/reward" in summary else []
    except (OSError, ValueError):
        pass
    return (_first_and_last(trained), _first_and_last(held_out)) if trained else None


def _first_and_last(values: Sequence[float]) -> str:
    return f"{values[0]:.3f} -> {values[-1]:.3f}" if values else ""
