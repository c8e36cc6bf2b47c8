"""True against learned reward while a run moves away from the policy that it began with."""

import csv
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from tpg.reporting.drawing import pyplot, save

WINDOW = 7
"""Iterations that a drawn line averages over."""


@dataclass(frozen=True)
class Point:
    """A policy: how far from the first one, and what its responses come to on average."""

    kl: float
    """Nats a response."""
    learned: float
    truth: float


def run_points(metrics: Path, learned: str, truth: str) -> list[Point]:
    """A point an iteration from a run's metrics.csv, where KL and both terms, which are named, were measured."""
    with metrics.open(newline="") as file:
        rows = list(csv.DictReader(file))
    names = ("kl", f"rewards/{learned}/mean", f"rewards/{truth}/mean")
    measured = [[float(row[name]) for name in names] for row in rows if all(row.get(name) for name in names)]
    return [Point(*values) for values in measured if all(map(math.isfinite, values))]


def best_of_n_points(report: Path) -> list[Point]:
    """The best of 1, 2, 4, ... from a report of `tpg.evaluate best_of_n=... against=[...]`; none without a truth."""
    curve = json.loads(report.read_text())["best_of_n"]["curve"]
    return [Point(each["kl"], each["reward"], each["truth"]) for each in curve if each["truth"] is not None]


def aligned(points: Sequence[Point], first: Point) -> list[Point]:
    """With the learned reward shifted, whose zero means nothing, so that it is the true one of the first policy."""
    return [replace(each, learned=each.learned - first.learned + first.truth) for each in points]


def smoothed(points: Sequence[Point], window: int = WINDOW) -> list[Point]:
    """Means over so many neighbouring iterations; near the ends over those of them that there are."""
    found = []
    for place in range(len(points)):
        near = points[max(place - window // 2, 0) : place + window // 2 + 1]
        sums = zip(*((each.kl, each.learned, each.truth) for each in near), strict=True)
        found.append(Point(*(math.fsum(values) / len(near) for values in sums)))
    return found


def draw_over_optimization(path: Path, runs: Mapping[str, Sequence[Point]], best_of_n: Sequence[Point] = ()) -> None:
    """The true reward (solid) and the learned one (dashed) over KL, a colour a run (arXiv 2210.10760).

    Raises `ValueError` when there is no run with points.
    """
    plt = pyplot()
    if not any(runs.values()):
        raise ValueError("no run measured KL, a learned reward and a true one")
    first = best_of_n[0] if best_of_n else next(points[0] for points in runs.values() if points)
    figure, axes = plt.subplots(figsize=(8, 4.5), dpi=120)
    for color, (name, points) in zip(("#2b6cb0", "#c05621", "#2f855a", "#6b46c1"), runs.items(), strict=False):
        # By chance the KL of few responses falls below 0.
        of_run = [replace(each, kl=max(each.kl, 0.0)) for each in aligned(points, first)]
        line = smoothed(of_run)
        kl = [each.kl for each in line]
        axes.scatter([each.kl for each in of_run], [each.truth for each in of_run], s=6, color=color, alpha=0.3)
        axes.plot(
            kl, [each.learned for each in line], "--", color=color, linewidth=1.5, label=f"{name}: learned reward"
        )
        axes.plot(kl, [each.truth for each in line], color=color, linewidth=2, label=f"{name}: true reward")
    if best_of_n:
        line = aligned(best_of_n, first)
        kl = [each.kl for each in line]
        label = "best of n: {} reward"
        axes.plot(
            kl, [each.learned for each in line], "s--", color="#718096", markersize=4, label=label.format("learned")
        )
        axes.plot(kl, [each.truth for each in line], "s-", color="#1a202c", markersize=4, label=label.format("true"))
    axes.set_xscale("function", functions=(lambda x: abs(x) ** 0.5, lambda x: x**2))
    axes.set_xlim(left=0)
    axes.set(xlabel="KL from the first policy, nats a response (root scale)", ylabel="mean reward")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)
    axes.legend(frameon=False, loc="best", fontsize=8)
    figure.tight_layout()
    save(figure, path)
