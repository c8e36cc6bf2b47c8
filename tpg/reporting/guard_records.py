"""What a run's guards said, as its guards.jsonl keeps it."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

NAME = "guards.jsonl"


@dataclass(frozen=True)
class Span:
    """Iterations in a row in which a guard's warning stood, both ends included."""

    guard: str
    first: int
    last: int
    told: str
    """When it began."""
    remedy: str
    stopped: bool = False
    """Whether the run was ended for it."""

    @property
    def where(self) -> str:
        """Its iterations in words."""
        one = self.first == self.last
        place = f"iteration {self.first}" if one else f"iterations {self.first} to {self.last}"
        return f"{place}, where the run was stopped" if self.stopped else place


def read_records(path: Path) -> list[dict[str, Any]]:
    """The records of a file, none without one; a line that cannot be read is left out."""
    if not path.exists():
        return []
    records = []
    for line in path.read_text(encoding="utf-8", errors="replace").split("\n"):
        try:
            record = json.loads(line)
            int(record["iteration"]), str(record["guard"]), str(record["event"])
        except (ValueError, KeyError, TypeError):
            continue
        records.append(record)
    return records


def spans(records: Iterable[Mapping[str, Any]], last: int) -> list[Span]:
    """When each guard's warning stood in a run of `last` iterations, in the order in which they began."""
    open_at: dict[str, Mapping[str, Any]] = {}
    stops: dict[str, int] = {}
    found = []

    def close(name: str, end: int) -> None:
        began = open_at.pop(name)
        stopped = stops.pop(name, None) == end
        told, remedy = str(began.get("told", "")), str(began.get("remedy", ""))
        found.append(Span(name, int(began["iteration"]), end, told, remedy, stopped))

    for record in records:
        name, iteration = str(record["guard"]), int(record["iteration"])
        if record["event"] == "ended":
            if name in open_at:
                close(name, iteration - 1)
            continue
        open_at.setdefault(name, record)
        if record["event"] == "stopped":
            stops[name] = iteration
    for name in list(open_at):
        close(name, max(last, int(open_at[name]["iteration"])))
    return sorted(found, key=lambda span: (span.first, span.guard))


def standing(records: Iterable[Mapping[str, Any]]) -> set[str]:
    """Guards whose warning has begun and not ended."""
    names: set[str] = set()
    for record in records:
        (names.discard if record["event"] == "ended" else names.add)(str(record["guard"]))
    return names


def iterations_by_guard(found: Iterable[Span]) -> dict[str, int]:
    """In how many iterations each guard's warning stood."""
    counts: dict[str, int] = {}
    for span in found:
        counts[span.guard] = counts.get(span.guard, 0) + span.last - span.first + 1
    return counts
