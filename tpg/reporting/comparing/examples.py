"""Completions worth reading."""

import heapq
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tpg.errors import UserError
from tpg.reporting.comparing.runs import Run
from tpg.reporting.tokens.record import Group, biggest_weights, read_groups, recorded, visible

LATEST = 5
"""Iterations at the end of each run whose best and worst completions are shown."""
LONGEST = 1500
"""Characters that are shown of a text."""
RESPONSES = 6
"""Responses of a group that are shown token by token."""


@dataclass(frozen=True)
class Example:
    """A completion as it is shown."""

    run: str
    iteration: int
    prompt: str
    response: str
    answer: str
    reward: float | None
    terms: dict[str, float | None]
    finish: str


@dataclass(frozen=True)
class Examples:
    """Of a method: the best and the worst of the last iterations, and the latest that could not be scored."""

    best: list[Example]
    worst: list[Example]
    unscored: list[Example]
    unreadable: int
    """Lines that are no completion, such as the last one of a killed run."""


@dataclass(frozen=True)
class TokenView:
    """A group token by token, as the last iteration whose tokens were recorded has it."""

    caption: str
    groups: list[Group]


def examples(runs: Sequence[Run], count: int) -> Examples:
    """The completions of a method's runs; among equals the later one, and none twice."""
    scored: dict[tuple[str, str], tuple[float, int, int, Example]] = {}
    unscored: dict[tuple[str, str], tuple[int, int, Example]] = {}
    unreadable = number = 0
    for run in runs:
        since = (run.rows[-1]["iteration"] if run.rows else 0) - LATEST
        for record in _records(run):
            number += 1
            if record is None or not isinstance(record.get("iteration"), int):
                unreadable += 1
                continue
            example = _example(run, record)
            key = example.prompt, example.response
            if example.reward is None:
                unscored[key] = (example.iteration, number, example)
            elif example.iteration > since:
                scored[key] = (example.reward, example.iteration, number, example)
    best = heapq.nlargest(min(count, (len(scored) + 1) // 2), scored.values(), key=lambda each: each[:3])
    taken = {each[2] for each in best}
    rest = [each for each in scored.values() if each[2] not in taken]
    worst = heapq.nsmallest(count, rest, key=lambda each: (each[0], -each[1], -each[2]))
    latest = heapq.nlargest(count, unscored.values(), key=lambda each: each[:2])
    return Examples(
        best=[each[-1] for each in best],
        worst=[each[-1] for each in worst],
        unscored=[each[-1] for each in latest],
        unreadable=unreadable,
    )


def _records(run: Run) -> Iterator[dict[str, Any] | None]:
    """A run's completions, None for a line that is none."""
    if run.completions is None:
        return
    with run.completions.open(encoding="utf-8", errors="replace", newline="\n") as file:
        for line in file:
            try:
                record = json.loads(line)
            except ValueError:
                record = None
            yield record if isinstance(record, dict) else None


def _example(run: Run, record: dict[str, Any]) -> Example:
    reward = record.get("reward")
    return Example(
        run=run.name,
        iteration=record["iteration"],
        prompt=shown(record.get("prompt")),
        response=shown(record.get("response")),
        answer="" if record.get("answer") is None else shown(record["answer"]),
        reward=float(reward) if isinstance(reward, int | float) and math.isfinite(reward) else None,
        terms=record.get("rewards") or {},
        finish=str(record.get("finish", "")),
    )


def shown(text: Any) -> str:
    """A text of a bearable length in which every character can be seen and stored; lines stay lines."""
    whole = text if isinstance(text, str) else json.dumps(text, default=str)
    rest = len(whole) - LONGEST
    more = f"… ({rest} more characters)" if rest > 0 else ""
    return "\n".join(visible(line) for line in whole[:LONGEST].split("\n")) + more


def token_view(runs: Sequence[Run]) -> TokenView | None:
    """From the first run that recorded tokens; None if none did."""
    for run in runs:
        files = recorded(Path(run.place))
        if files:
            iteration, file = max(files.items())
            try:
                groups = biggest_weights(read_groups(file))[:1]
            except UserError as error:
                return TokenView(str(error), [])
            groups = [replace(group, shown=group.shown[:RESPONSES]) for group in groups]
            told = "the group with the largest weight" if groups else "no response had a weight"
            return TokenView(f"{run.name}, iteration {iteration}: {told}", groups)
    return None
