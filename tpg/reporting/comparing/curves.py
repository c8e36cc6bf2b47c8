"""Learning curves of runs, and their mean over the seeds of a method."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from tpg.reporting.comparing.runs import Run

Axis = Literal["iteration", "tokens"]
Measure = Literal["reward", "eval/reward"]
GRID = 80
"""Points of a mean over runs that were measured at unequal numbers of tokens."""


@dataclass(frozen=True)
class Curve:
    """Points from left to right."""

    x: list[float]
    y: list[float]


@dataclass(frozen=True)
class MeanCurve:
    """Mean, least and greatest of the runs that reach as far as x, and how many do: half of them or more."""

    x: list[float]
    mean: list[float]
    low: list[float]
    high: list[float]
    runs: list[int]


def curve(run: Run, measure: Measure, axis: Axis) -> Curve:
    """A run's reward against iterations, or against the tokens that were generated up to the measurement.

    Held-out rewards are measured before the rollout of their row; the final policy's stand one iteration to the right.
    """
    points = []
    spent = 0.0
    for row in run.rows:
        total = row.get("num_tokens", math.nan)
        tokens = spent if measure == "eval/reward" else total
        points.append((row["iteration"] if axis == "iteration" else tokens, row.get(measure, math.nan)))
        spent = total
    if measure in run.final and run.rows:
        points.append((run.rows[-1]["iteration"] + 1 if axis == "iteration" else spent, run.final[measure]))
    kept = [(x, y) for x, y in points if math.isfinite(x) and math.isfinite(y)]
    return Curve([x for x, _ in kept], [y for _, y in kept])


def mean_curve(curves: Sequence[Curve], axis: Axis) -> MeanCurve:
    """The mean over seeds, between points of a run on a straight line."""
    curves = [each for each in curves if each.x]
    if not curves:
        return MeanCurve([], [], [], [], [])
    everywhere = sorted({x for each in curves for x in each.x})
    if axis == "tokens" and len(curves) > 1 and len(everywhere) > 1:
        grid = np.linspace(everywhere[0], everywhere[-1], GRID)
    else:
        grid = np.array(everywhere)
    values = np.array([np.interp(grid, each.x, each.y, left=np.nan, right=np.nan) for each in curves])
    reach = np.isfinite(values).sum(0)
    # Runs of one length end at unequal numbers of tokens: the last of two would bend the mean to itself.
    enough = 2 * reach > len(curves) if axis == "tokens" else 2 * reach >= len(curves)
    grid, values, reach = grid[enough], values[:, enough], reach[enough]
    return MeanCurve(
        x=grid.tolist(),
        mean=np.nanmean(values, 0).tolist(),
        low=np.nanmin(values, 0).tolist(),
        high=np.nanmax(values, 0).tolist(),
        runs=reach.tolist(),
    )
