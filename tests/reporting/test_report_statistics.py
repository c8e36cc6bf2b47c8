"""Means, intervals and probabilities of improvement against numbers worked out by hand."""

import math

import numpy as np
import pytest

from tpg.reporting.comparing import statistics
from tpg.reporting.comparing.statistics import BOOTSTRAP, Estimate

RESAMPLES = 4000


def test_the_mean_weighs_strata_alike():
    assert statistics.mean(np.array([1.0, 2.0, 3.0]), np.array([10.0])) == 6.0


def test_the_interquartile_mean_is_that_of_the_middle_half():
    assert statistics.interquartile_mean(np.array([0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 100.0])) == 3.5
    assert statistics.interquartile_mean(np.array([1.0, 2.0, 9.0])) == 4.0


def test_the_interquartile_mean_takes_the_runs_of_all_strata_together():
    assert statistics.interquartile_mean(np.array([0.0, 4.0]), np.array([5.0, 100.0])) == 4.5


def test_the_probability_of_improvement_counts_pairs_and_half_of_the_ties():
    # Of 2 x 3 pairs 3 > 1, 3 > 2, 2 > 1 are wins; 3 = 3 and 2 = 2 are ties; 2 < 3 is a loss.
    given = statistics.compare([[3.0, 2.0]], [[1.0, 2.0, 3.0]], RESAMPLES)
    assert given == Estimate(pytest.approx(4 / 6), 0.0, 1.0, "too few runs for an interval")


def test_the_probability_of_improvement_is_averaged_over_tasks():
    # Always better in the first task, never in the second, whose rewards are on another scale.
    given = statistics.compare([[2.0, 2.0, 2.0], [10.0, 10.0, 10.0]], [[1.0, 1.0, 1.0], [20.0, 20.0, 20.0]], RESAMPLES)
    assert given == Estimate(0.5, 0.5, 0.5, BOOTSTRAP)


def test_the_bootstrap_of_three_runs_reaches_as_far_as_it_must():
    # A resample of (0, 0, 3) is all zeros with probability (2/3)^3 = 0.30, all threes with (1/3)^3 = 0.037.
    given = statistics.estimate(statistics.mean, [[0.0, 0.0, 3.0]], RESAMPLES)
    assert given == Estimate(1.0, 0.0, 3.0, BOOTSTRAP)


def test_the_bootstrap_of_many_runs_is_as_wide_as_the_standard_error():
    values = [float(i % 2) for i in range(400)]  # mean 1/2, standard error 1/2 / 20 = 0.025
    given = statistics.estimate(statistics.mean, [values], RESAMPLES)
    assert given.low == pytest.approx(0.5 - 1.96 * 0.025, abs=0.004)
    assert given.high == pytest.approx(0.5 + 1.96 * 0.025, abs=0.004)


def test_the_bootstrap_resamples_each_stratum_by_itself():
    # Within a task all runs agree: nothing is uncertain, though the tasks differ.
    given = statistics.estimate(statistics.mean, [[1.0, 1.0, 1.0], [5.0, 5.0, 5.0]], RESAMPLES)
    assert given == Estimate(3.0, 3.0, 3.0, BOOTSTRAP)


def test_the_same_runs_have_the_same_interval_every_time():
    values = [0.1, 0.4, 0.35, 0.8, 0.2]
    first, second = (statistics.estimate(statistics.interquartile_mean, [values], RESAMPLES) for _ in range(2))
    assert first == second


def test_too_few_runs_have_no_bootstrap():
    assert statistics.estimate(statistics.mean, [[0.25]], RESAMPLES) == Estimate(0.25, 0.25, 0.25, "one run")
    assert statistics.estimate(statistics.mean, [[0.2, 0.4]], RESAMPLES) == Estimate(
        pytest.approx(0.3), 0.2, 0.4, "range of 2 runs"
    )
    given = statistics.estimate(statistics.mean, [[0.0, 0.0, 0.0], [1.0]], RESAMPLES)
    assert given == Estimate(0.5, 0.0, 1.0, "range of 4 runs")


def test_a_trailing_mean_begins_with_what_there_is():
    assert statistics.trailing_mean([3.0, 5.0, 1.0, 0.0]) == [3.0, 4.0, 3.0, 2.0]


def test_the_first_value_that_reaches_a_threshold():
    assert statistics.first_at_least([0.1, 0.5, 0.4, 0.9], 0.5) == 1
    assert statistics.first_at_least([0.1, 0.2], 0.5) is None


def test_a_mean_passes_over_what_is_not_finite():
    assert statistics.finite_mean([1.0, math.nan, 3.0, math.inf]) == 2.0
    assert math.isnan(statistics.finite_mean([math.nan]))
