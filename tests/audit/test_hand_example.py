"""A world that fits on a sheet of paper: two tokens out of two, all four responses equally likely, R = 0, 0, 1, 3."""

import pytest
import torch
from tables import hand_world, of_world

from tpg.aggregation import Constant
from tpg.audit.oracles import TokenRewardToGo
from tpg.estimators.gae import GAE
from tpg.estimators.group import GRPO, GroupMean
from tpg.estimators.reinforce import Reinforce
from tpg.estimators.remax import ReMax
from tpg.estimators.rloo import RLOO

GRADIENT = [-0.5, 0.5, 0.0, 0.0, -0.25, 0.25]
"""After (), after 0, after 1."""


@pytest.mark.parametrize(
    ("estimator", "group", "trace", "tokens"),
    [
        (Reinforce(), 1, 1.875, 2),
        (Reinforce(baseline=1.0), 1, 0.875, 2),
        (GAE(lam=1.0), 1, 0.375, 2),  # R - V(prefix)
        (GAE(lam=0.0), 1, 0.125, 2),  # Q - V
        (TokenRewardToGo(), 1, 1.125, 2),
        (RLOO(), 2, 1.5, 4),
        (RLOO(), 3, 0.645833333333, 6),
        (ReMax(), 1, 1.875, 4),  # the likeliest response is the first, 00, worth 0
    ],
    ids=repr,
)
def test_unbiased_estimators(estimator, group, trace, tokens):
    found = of_world(hand_world(), estimator, group)
    assert found.enumerated
    assert found.error == 0.0
    assert found.true.tolist() == pytest.approx(GRADIENT)
    assert found.mean.tolist() == pytest.approx(GRADIENT, abs=1e-12)
    assert found.trace == pytest.approx(trace)
    assert found.tokens == pytest.approx(tokens)
    assert found.responses == group


def test_remax_with_another_greedy_response():
    # The likeliest tokens are 1 1 by a hair: a constant baseline of 3.
    nudge = torch.zeros(1, 3, 2, dtype=torch.float64)
    nudge[0, 0, 1] = nudge[0, 2, 1] = 1e-9
    world = hand_world(logits=nudge, old_logits=nudge, rollout_logits=nudge)
    found = of_world(world, ReMax())
    # sum over responses of (R - 3)^2 |S|^2 / 4, |S|^2 = 1, less |gradient|^2
    assert found.trace == pytest.approx((9 + 9 + 4 + 0) / 4 - 0.625, rel=1e-6)


def test_scales():
    for estimator, group, scale in [(GroupMean(), 2, 1 / 2), (GroupMean(), 3, 2 / 3), (Reinforce(), 1, 1.0)]:
        found = of_world(hand_world(), estimator, group)
        assert found.mean.tolist() == pytest.approx([scale * x for x in GRADIENT], abs=1e-12)
    halved = of_world(hand_world(), Reinforce(), aggregation=Constant())
    assert halved.mean.tolist() == pytest.approx([x / 2 for x in GRADIENT], abs=1e-12)
    assert halved.trace == pytest.approx(1.875 / 4)


def test_grpo_of_two_is_the_sign_of_the_difference():
    # Weights are +-1/sqrt(2) where rewards differ. Winner's first token 1, loser's 0: in all pairs {00,01} x {10,11},
    # 8 of 16; and 10 against 11: after 1 only, 2 of 16.
    found = of_world(hand_world(), GRPO(epsilon=0.0), 2)
    half = 0.5**0.5
    # After (): 8/16 pairs, mean over the two of weight * score: (half * .5 + half * .5) / 2 upwards for token 1.
    first = 8 / 16 * half * 0.5
    # After 1: 2/16 pairs of 10 and 11 give half * .5; in the other pairs the winner's second token is 0 or 1 evenly.
    second = 2 / 16 * half * 0.5
    assert found.mean.tolist() == pytest.approx([-first, first, 0, 0, -second, second], abs=1e-12)
