"""RL-ZVP by hand: GRPO where rewards differ, a push by entropy where they do not."""

import pydantic
import pytest
import torch
from builders import scored

from tpg.estimators.base import Answers
from tpg.estimators.group import GRPO
from tpg.estimators.rl_zvp import RLZVP

NAN = float("nan")
ENTROPY = [0.2, 0.8, 0.5]


def batch(rewards, **fields):
    lengths = fields.pop("lengths", [3] * len(rewards))
    entropy = [ENTROPY[:length] + [NAN] * (3 - length) for length in lengths]
    return scored(rewards, lengths=lengths, entropy_BT=torch.tensor(entropy, dtype=torch.float64), **fields)


def weights(trajectories, **options):
    return RLZVP(**options).weights(trajectories, Answers())


def close(weights_BT, expected):
    torch.testing.assert_close(weights_BT, torch.tensor(expected, dtype=torch.float64), atol=1e-6, rtol=0)


UP, DOWN = [0.02, 0.08, 0.05], [-0.06, 0.0, -0.03]


def test_equal_rewards_push_by_the_entropy():
    assert RLZVP().requests(batch([1.0, 1.0])).distribution
    close(weights(batch([1.0, 1.0])), [UP, UP])
    close(weights(batch([0.0, 0.0])), [DOWN, DOWN])
    close(weights(batch([-0.1, -0.1])), [DOWN, DOWN])
    close(weights(batch([1.0, 1.0]), alpha=0.2), [[0.04, 0.16, 0.1]] * 2)
    assert not weights(batch([1.0, 1.0]), alpha=0.0).any()


def test_differing_rewards_are_grpo():
    differing = batch([1.0, 0.0, 0.0, 1.0])
    close(weights(differing)[:, 0], [0.865875, -0.865875, -0.865875, 0.865875])
    for std in ("group", "batch", "none"):
        assert torch.equal(weights(differing, std=std), GRPO(std=std).weights(differing, Answers()))


def test_each_group_and_response_for_itself():
    trajectories = batch([1.0, 0.0, 1.0, 3.0, 0.0, 1.0, 5.0], rows=[0, 1, 0, 2, 1, 2, 3], lengths=[3, 3, 1, 1, 1, 1, 3])
    # The response of one token has its own largest entropy there; the last response is alone in its group.
    expected = [UP, DOWN, [0.02, 0, 0], [1.0, 0, 0], [0.0, 0, 0], [-1.0, 0, 0], [0.0, 0, 0]]
    close(weights(trajectories, std="none"), expected)


def test_what_is_not_scored_neither_splits_a_group_nor_is_pushed():
    close(weights(batch([1.0, NAN, 1.0], unscored=(1,))), [UP, [0, 0, 0], UP])
    close(weights(batch([1.0, 1.0], unscored=(1,))), [[0, 0, 0], [0, 0, 0]])


def test_tokens_that_the_policy_did_not_choose_are_out():
    mask_BT = torch.tensor([[True, False, True], [False, False, False]])
    close(weights(batch([0.0, 0.0], action_mask_BT=mask_BT)), [[-0.03, 0, 0], [0, 0, 0]])
    close(weights(batch([1.0, 1.0], action_mask_BT=mask_BT)), [[0.02, 0, 0.05], [0, 0, 0]])


def test_options_are_checked():
    estimator = RLZVP(epsilon=0.5, std="batch", alpha=0.3)
    push = "push in zero-variance groups"
    assert estimator.without() == {
        push: GRPO(epsilon=0.5, std="batch"),
        "std normalisation": RLZVP(alpha=0.3, epsilon=0.5, std="none"),
    }
    assert RLZVP(std="none").without() == {push: GRPO(std="none")}
    with pytest.raises(pydantic.ValidationError, match="alpha"):
        RLZVP(alpha=-0.1)
