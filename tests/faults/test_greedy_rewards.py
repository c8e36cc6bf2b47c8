"""A reward that eats memory, or gives no number, costs its own response only."""

import math
import os
import sys
from pathlib import Path

import pytest

from tpg.rewards.base import Sample
from tpg.rewards.function import Function
from tpg.rewards.model import RewardModel

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="other systems enforce no limit on data")


@pytest.fixture(autouse=True)
def importable(monkeypatch):
    here = str(Path(__file__).parent)
    monkeypatch.setattr(sys, "path", [here, *sys.path])
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(path for path in (here, os.environ.get("PYTHONPATH")) if path))


def scored(function, *responses, memory_gb=None, weight=1.0):
    terms = {"user": Function(function=f"greedy_rewards:{function}", timeout_s=60, weight=weight)}
    with RewardModel(terms, 2, memory_gb) as model:
        return model.score([Sample(prompt="", response=response) for response in responses])


def test_what_needs_more_memory_than_it_may_is_unscored():
    rewards = scored("hoard", "fine", "one block", "numpy", "good", memory_gb=0.4)
    assert rewards.scored == [True, False, False, True]
    assert rewards.failures == {"user": {"out of memory": 2}}
    assert rewards.first_failure == {"user": "more memory than there is under reward_memory_gb=0.4"}


def test_a_process_that_has_not_even_the_memory_to_say_so_dies_alone():
    rewards = scored("hoard", "fine", "a list that grows", "good", memory_gb=0.4)
    assert rewards.scored == [True, False, True]
    assert set(rewards.failures["user"]) <= {"out of memory", "process died"}


def test_without_a_limit_it_is_scored():
    rewards = scored("hoard", "fine", "one block")
    assert rewards.total == [1.0, 2.0**29]


def test_what_is_no_number_is_told_by_name():
    rewards = scored("odd", "fine", "list", "none", "text", "dict", "huge")
    assert rewards.scored == [True, False, False, False, False, False]
    assert rewards.failures == {"user": {"raised": 4, "NaN": 1}}
    assert rewards.first_failure == {"user": "TypeError: a reward must be a number, not [1.0, 2.0]"}


def test_a_sum_that_is_too_large_is_no_reward():
    rewards = scored("odd", "fine", weight=1e39)
    assert rewards.terms == {"user": [1.0]}
    assert rewards.scored == [False]
    assert math.isnan(rewards.total[0])
