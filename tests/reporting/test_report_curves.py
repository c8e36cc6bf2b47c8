"""Learning curves, and their mean over seeds."""

import math

import pytest
from made_runs import config, rows

from tpg.reporting.comparing.curves import Curve, curve, mean_curve
from tpg.reporting.comparing.runs import Run


def run(rewards, final=None, **columns):
    made = [{key: float(value) for key, value in row.items() if value != ""} for row in rows(rewards, **columns)]
    return Run("a", "a", config(), made, {} if final is None else {"eval/reward": final})


def test_training_rewards_by_iteration_and_by_tokens():
    given = run([0.1, 0.2, 0.4])
    assert curve(given, "reward", "iteration") == Curve([1, 2, 3], [0.1, 0.2, 0.4])
    assert curve(given, "reward", "tokens") == Curve([100, 200, 300], [0.1, 0.2, 0.4])


def test_held_out_rewards_stand_at_the_tokens_spent_before_and_the_final_one_behind():
    given = run([0.1, 0.2, 0.4], final=0.5, **{"eval/reward": [0.05, "", 0.3]})
    assert curve(given, "eval/reward", "iteration") == Curve([1, 3, 4], [0.05, 0.3, 0.5])
    assert curve(given, "eval/reward", "tokens") == Curve([0, 200, 300], [0.05, 0.3, 0.5])


def test_an_iteration_in_which_nothing_was_scored_is_passed_over():
    assert curve(run([0.1, math.nan, 0.4]), "reward", "iteration") == Curve([1, 3], [0.1, 0.4])


def test_the_mean_has_the_least_and_the_greatest_beside_it():
    given = mean_curve([Curve([1, 2], [0.0, 1.0]), Curve([1, 2], [0.5, 0.5]), Curve([1, 2], [1.0, 0.0])], "iteration")
    assert (given.x, given.mean, given.low, given.high) == ([1, 2], [0.5, 0.5], [0.0, 0.0], [1.0, 1.0])
    assert given.runs == [3, 3]


def test_the_mean_goes_on_with_the_runs_that_are_left_until_most_have_ended():
    short, longer, longest = Curve([1], [0.0]), Curve([1, 2], [0.3, 0.5]), Curve([1, 2, 3], [0.6, 0.7, 0.8])
    given = mean_curve([short, longer, longest], "iteration")
    assert given.x == [1, 2]
    assert given.mean == pytest.approx([0.3, 0.6])
    assert given.runs == [3, 2]


def test_the_mean_by_tokens_is_between_the_points_of_each_run():
    given = mean_curve([Curve([0, 100], [0.0, 1.0]), Curve([0, 50, 100], [0.0, 0.0, 0.0])], "tokens")
    # Half of 0.01 a token.
    assert given.mean == pytest.approx([x / 200 for x in given.x])
    assert (given.x[0], given.x[-1], len(given.x)) == (0, 100, 80)


def test_the_mean_of_two_by_tokens_ends_with_the_shorter():
    given = mean_curve([Curve([0, 100], [0.0, 1.0]), Curve([10, 90], [0.0, 0.0])], "tokens")
    assert 10 <= given.x[0] < 12
    assert 88 < given.x[-1] <= 90
    assert set(given.runs) == {2}


def test_no_points_make_no_curve():
    assert mean_curve([Curve([], [])], "tokens").x == []
