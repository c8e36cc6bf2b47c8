"""What differs between two runs."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from tpg.reporting.comparing.curves import Curve, Measure, curve
from tpg.reporting.comparing.runs import Run
from tpg.reporting.comparing.settings import choices_of, flattened
from tpg.reporting.comparing.statistics import trailing_mean

IDENTITY = ("run_id", "run_dir", "resume", "choices")
"""Keys that differ between any two runs, or are shown by themselves."""
PLACES = 5
"""Numbers of tokens at which two curves are compared."""

CURVES: dict[Measure, str] = {"reward": "training reward (mean of three iterations)", "eval/reward": "held-out reward"}


@dataclass(frozen=True)
class AtTokens:
    """Two runs' rewards after the same number of generated tokens."""

    tokens: float
    first: float
    second: float


def different_settings(a: Run, b: Run) -> list[tuple[str, str, str]]:
    """Options and then keys with unequal values: name, a's, b's."""
    rows = []
    for one, other in (
        (choices_of(a.config), choices_of(b.config)),
        (_leaves(a), _leaves(b)),
    ):
        for key in {**one, **other}:
            pair = one.get(key, "not there"), other.get(key, "not there")
            if pair[0] != pair[1]:
                rows.append((key, *pair))
    return rows


def _leaves(run: Run) -> dict[str, str]:
    return flattened({key: value for key, value in run.config.items() if key not in IDENTITY})


def outcomes(a: Run, b: Run) -> dict[str, tuple[float, float]]:
    """Each measure of a and of b; NaN where it was not taken."""
    one, other = _outcome(a), _outcome(b)
    return {name: (one[name], other[name]) for name in one}


def _outcome(run: Run) -> dict[str, float]:
    rewards = run.column("reward") or [math.nan]
    held_out = [*run.column("eval/reward"), *([run.final["eval/reward"]] if "eval/reward" in run.final else [])]
    held_out = held_out or [math.nan]
    return {
        "iterations": len(run.rows),
        "reward first": rewards[0],
        "reward last": rewards[-1],
        "reward best": max(rewards),
        "held out first": held_out[0],
        "held out last": held_out[-1],
        "held out best": max(held_out),
        "tokens": run.tokens,
        "seconds": run.seconds,
        "tokens/s": run.tokens / run.seconds if run.seconds else math.nan,
        "unscored": sum(run.column("completions/unscored")),
    }


def at_equal_tokens(a: Run, b: Run, measure: Measure) -> list[AtTokens]:
    """Both curves at numbers of tokens that both have reached, evenly spaced to the last of these."""
    curves = [curve(run, measure, "tokens") for run in (a, b)]
    if not all(each.x for each in curves):
        return []
    if measure == "reward":
        curves = [Curve(each.x, trailing_mean(each.y)) for each in curves]
    start, end = max(each.x[0] for each in curves), min(each.x[-1] for each in curves)
    if end < start:
        return []
    places = np.linspace(start, end, PLACES + 1)[1:] if end > start else np.array([end])
    first, second = (np.interp(places, each.x, each.y).tolist() for each in curves)
    return [AtTokens(*row) for row in zip(places.tolist(), first, second, strict=True)]


def print_comparison(a: Run, b: Run, console: Console) -> None:
    """Config, outcome and curves, a table each."""
    settings = different_settings(a, b)
    if settings:
        _print(console, "config", ["", "a", "b"], settings)
    else:
        console.print("config: the same")
    rows = [
        (name, *_pair(*pair, digits=3 if name.startswith(("reward", "held")) else 0))
        for name, pair in outcomes(a, b).items()
        if not all(map(math.isnan, pair))
    ]
    _print(console, "outcome", ["", "a", "b", "b - a"], [("state", a.state, b.state, ""), *rows])
    for measure, name in CURVES.items():
        points = at_equal_tokens(a, b, measure)
        if points:
            rows = [(f"{at.tokens:.0f}", *_pair(at.first, at.second, digits=3)) for at in points]
            _print(console, f"{name} at equal tokens", ["tokens", "a", "b", "b - a"], rows)
        elif measure == "reward":
            console.print("the curves have no number of tokens in common")


def _print(console: Console, title: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    table = Table(title=title, title_justify="left", title_style="bold")
    for i, name in enumerate(head):
        table.add_column(name, justify="left" if i == 0 or title == "config" else "right", overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    console.print(table)


def _pair(a: float, b: float, digits: int) -> tuple[str, str, str]:
    """Both numbers and their difference with its sign."""
    one, other = (f"{value:.{digits}f}" if math.isfinite(value) else "-" for value in (a, b))
    return one, other, f"{b - a:+.{digits}f}" if math.isfinite(b - a) else "-"
