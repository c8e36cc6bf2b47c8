"""Statistics over few seeds, as recommended by arXiv 2108.13264."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

Array = NDArray[np.float64]
BOOTSTRAP = "95 % bootstrap interval"
FEWEST = 3
"""Runs that a bootstrap needs; with fewer the range of the runs is given instead."""


@dataclass(frozen=True)
class Estimate:
    """A number with what is known of its uncertainty."""

    value: float
    low: float
    high: float
    kind: str
    """What low and high are: `95 % bootstrap interval`, `range of 2 runs` or `one run`."""


def mean(*strata: Array, axis: int = -1) -> Any:
    """Mean over strata of the mean over their runs."""
    return np.mean([stratum.mean(axis) for stratum in strata], axis=0)


def interquartile_mean(*strata: Array, axis: int = -1) -> Any:
    """Mean of the middle half of all runs; that of all where there are fewer than four."""
    return stats.trim_mean(np.concatenate(strata, axis), 0.25, axis=axis)


def probability_of_improvement(x: Array, y: Array, axis: int = -1) -> Any:
    """P(X > Y) + P(X = Y) / 2 for a run of x and one of y: the Mann-Whitney statistic over the number of pairs."""
    x, y = np.moveaxis(x, axis, -1)[..., :, None], np.moveaxis(y, axis, -1)[..., None, :]
    return ((x > y) + 0.5 * (x == y)).mean((-2, -1))


def estimate(statistic: Callable[..., Any], strata: Sequence[Sequence[float]], resamples: int) -> Estimate:
    """A statistic of runs in strata with a stratified percentile bootstrap interval.

    Each stratum (a task) is resampled by itself. Too few runs give the range of the runs, which is called so.
    """
    arrays = [np.asarray(stratum, dtype=float) for stratum in strata]
    value = float(statistic(*arrays))
    count = sum(map(len, arrays))
    if min(map(len, arrays)) < FEWEST:
        everything = np.concatenate(arrays)
        kind = "one run" if count == 1 else f"range of {count} runs"
        return Estimate(value, float(everything.min()), float(everything.max()), kind)
    return Estimate(value, *_bootstrap(statistic, arrays, resamples), BOOTSTRAP)


def compare(x: Sequence[Sequence[float]], y: Sequence[Sequence[float]], resamples: int) -> Estimate:
    """The probability that a run of x is better than one of y, averaged over strata that come in pairs."""
    arrays = [np.asarray(stratum, dtype=float) for stratum in (*x, *y)]

    def average(*samples: Array, axis: int = -1) -> Any:
        pairs = zip(samples[: len(x)], samples[len(x) :], strict=True)
        return np.mean([probability_of_improvement(a, b, axis) for a, b in pairs], axis=0)

    value = float(average(*arrays))
    if min(map(len, arrays)) < FEWEST:
        return Estimate(value, 0.0, 1.0, "too few runs for an interval")
    return Estimate(value, *_bootstrap(average, arrays, resamples), BOOTSTRAP)


def _bootstrap(statistic: Callable[..., Any], arrays: Sequence[Array], resamples: int) -> tuple[float, float]:
    interval = stats.bootstrap(
        tuple(arrays),
        statistic,
        n_resamples=resamples,
        vectorized=True,
        method="percentile",
        rng=np.random.default_rng(0),
    ).confidence_interval
    return float(interval.low), float(interval.high)


def trailing_mean(values: Sequence[float], width: int = 3) -> list[float]:
    """Each value's mean with those just before it, `width` in all."""
    return [sum(window) / len(window) for i in range(len(values)) if (window := values[max(0, i + 1 - width) : i + 1])]


def first_at_least(values: Sequence[float], threshold: float) -> int | None:
    """The index of the first value that reaches the threshold."""
    return next((i for i, value in enumerate(values) if value >= threshold), None)


def finite_mean(values: Sequence[float]) -> float:
    """Mean of the finite values; NaN where there is none."""
    kept = [value for value in values if math.isfinite(value)]
    return sum(kept) / len(kept) if kept else math.nan
