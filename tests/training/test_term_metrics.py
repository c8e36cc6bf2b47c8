"""What is logged of the terms, against numbers worked out by hand."""

import math

import pytest
import torch
from builders import record

from tpg.rewards.base import Sample
from tpg.rewards.combination import Schedule, WeightedSum
from tpg.rewards.group_combinations import GDPO
from tpg.rewards.length import LengthTarget
from tpg.rewards.model import RewardModel
from tpg.training.guards import Guard, for_each_term
from tpg.training.scoring import Scored, joined
from tpg.training.term_metrics import term_metrics

NAN = math.nan


def scored(values, model, iteration, groups):
    """Trajectories whose terms came to `values`, one a response."""
    samples = tuple(Sample(prompt="", response="", group=(group, 0)) for group in groups)
    weights = {name: term.weight for name, term in model.terms.items()}
    rewards = model.combination.rewards(values, weights, samples, iteration)
    trajectories = record([[2]] * len(groups), [[3]] * len(groups)).replace(
        rewards_B=torch.tensor(rewards).nan_to_num(),
        scored_B=~torch.tensor(rewards).isnan(),
        reward_terms_B={name: torch.tensor(column) for name, column in values.items()},
    )
    return Scored(trajectories, samples, {}, {})


def model(combination, **weights):
    terms = {name: LengthTarget(target_tokens=1, tolerance_tokens=1, weight=weight) for name, weight in weights.items()}
    return RewardModel(terms, workers=1, combination=combination)


def told(values, combination, iteration=1, groups=None, **weights):
    count = len(next(iter(values.values())))
    with model(combination, **weights) as made:
        return term_metrics(scored(values, made, iteration, groups or [0] * count), made, iteration)


def test_weight_correlation_and_share():
    # 2a - b, which a constant moves, of those that are scored: -1, 2, 4 with mean 5/3 and variance 38/9.
    values = {"a": [0.0, 1.0, 2.0, NAN], "b": [1.0, 0.0, 0.0, 7.0], "dead": [3.0, 3.0, 3.0, 3.0]}
    found = told(values, WeightedSum(), a=2.0, b=-1.0, dead=0.5)
    variance, with_a, with_b = 38 / 9, 10 / 3, 8 / 9
    assert found == pytest.approx(
        {
            "rewards/a/weight": 2.0,
            "rewards/a/correlation": (with_a / 2) / math.sqrt(2 / 3 * variance),
            "rewards/a/share": with_a / variance,
            "rewards/b/weight": -1.0,
            "rewards/b/correlation": -with_b / math.sqrt(2 / 9 * variance),
            "rewards/b/share": with_b / variance,
            "rewards/dead/weight": 0.5,
            "rewards/dead/correlation": 0.0,
            "rewards/dead/share": 0.0,
        }
    )
    assert found["rewards/a/share"] + found["rewards/b/share"] == pytest.approx(1.0)


def test_the_weight_is_the_iterations():
    combination = WeightedSum(schedules={"a": Schedule(final=0.0, iterations=2)})
    weights = [told({"a": [0.0, 1.0]}, combination, iteration, a=3.0)["rewards/a/weight"] for iteration in (1, 2, 3, 9)]
    assert weights == [3.0, 1.5, 0.0, 0.0]


def test_those_that_passed_a_gate_and_values_that_do_not_count():
    values = {"gate": [0.7, 0.2, 0.9, NAN], "other": [1.0, NAN, 3.0, 1.0]}
    found = told(values, WeightedSum(gates={"gate": 0.7}), gate=1.0, other=1.0)
    assert found["rewards/gate/passed"] == pytest.approx(2 / 3)
    assert found["rewards/other/correlation"] == pytest.approx(1.0)  # of the two that have a value: 1, 3 and 1.7, 3.9
    # Parts 0.7, 0.2, 0.9 and 1, 0, 3.
    assert found["rewards/gate/share"] + found["rewards/other/share"] == pytest.approx(1.0)
    assert not any("other/passed" in name for name in found)


def test_shares_are_of_what_the_combination_adds_up():
    values = {"large": [0.0, 1000.0, 0.0, 1000.0], "small": [0.0, 0.0, 1.0, 1.0]}
    plain = told(values, WeightedSum(), large=1.0, small=1.0)
    assert plain["rewards/large/share"] > 0.99999
    found = told(values, GDPO(epsilon=0.0), large=1.0, small=1.0)
    assert found["rewards/large/share"] == found["rewards/small/share"] == pytest.approx(0.5)


def test_rewards_that_do_not_vary_and_none_at_all():
    for values in ([2.0, 2.0], [NAN, NAN]):
        found = told({"a": values}, WeightedSum(gates={"a": 1.0}), a=1.0)
        passed = found.pop("rewards/a/passed")
        assert found == {"rewards/a/weight": 1.0, "rewards/a/correlation": 0.0, "rewards/a/share": 0.0}
        assert math.isnan(passed) == math.isnan(values[0])


def test_processes_that_share_an_iteration_log_what_one_does():
    values = {"a": [0.1, 0.7, 0.4, 0.2, NAN, 0.9], "b": [3.0, 1.0, 2.0, 5.0, 1.0, 0.0]}
    groups = [0, 0, 0, 1, 1, 1]
    with model(GDPO(gates={"a": 0.3}), a=1.0, b=0.1) as made:
        whole = scored(values, made, 1, groups)
        halves = [
            scored({name: column[own] for name, column in values.items()}, made, 1, groups[own])
            for own in (slice(0, 3), slice(3, 6))
        ]
        assert term_metrics(joined(halves), made, 1) == term_metrics(whole, made, 1)


def test_a_guard_of_terms_watches_each_of_several():
    guards = {"dead": Guard(metric="rewards/{term}/std", below=0.1), "flat": Guard(metric="reward", below=0.1)}
    assert for_each_term(guards, ["a", "b"]) == {
        "dead/a": Guard(metric="rewards/a/std", below=0.1),
        "dead/b": Guard(metric="rewards/b/std", below=0.1),
        "flat": guards["flat"],
    }
    assert list(for_each_term(guards, ["a"])) == ["flat"]
