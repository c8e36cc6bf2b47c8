"""Surrogates, their gradients and what is watched, computed by hand."""

import pydantic
import pytest
import torch
from builders import record

from tpg.objectives.policy_gradient import PolicyGradient
from tpg.objectives.ppo_clip import PPOClip

RATIOS = [0.5, 0.79, 1.0, 1.25, 1.5, 4.0]
CLIP_HIGHER = PPOClip(clip_high=0.28)
DUAL = PPOClip(dual_clip=3.0)

# Objective, weight of every token, surrogate (the loss is its negative), its slope in the log-probability, clip ratio.
CASES = [
    (PPOClip(), 1.0, [0.5, 0.79, 1, 1.2, 1.2, 1.2], [0.5, 0.79, 1, 0, 0, 0], [0, 0, 0, 1, 1, 1]),
    (CLIP_HIGHER, 1.0, [0.5, 0.79, 1, 1.25, 1.28, 1.28], [0.5, 0.79, 1, 1.25, 0, 0], [0, 0, 0, 0, 1, 1]),
    (PPOClip(), -1.0, [-0.8, -0.8, -1, -1.25, -1.5, -4], [0, 0, -1, -1.25, -1.5, -4], [1, 1, 0, 0, 0, 0]),
    (CLIP_HIGHER, -1.0, [-0.8, -0.8, -1, -1.25, -1.5, -4], [0, 0, -1, -1.25, -1.5, -4], [1, 1, 0, 0, 0, 0]),
    (DUAL, -1.0, [-0.8, -0.8, -1, -1.25, -1.5, -3], [0, 0, -1, -1.25, -1.5, 0], [1, 1, 0, 0, 0, 0]),
    (DUAL, -2.0, [-1.6, -1.6, -2, -2.5, -3, -6], [0, 0, -2, -2.5, -3, 0], [1, 1, 0, 0, 0, 0]),
    (DUAL, 1.0, [0.5, 0.79, 1, 1.2, 1.2, 1.2], [0.5, 0.79, 1, 0, 0, 0], [0, 0, 0, 1, 1, 1]),
    (PPOClip(clip_low=0.1), -1.0, [-0.9, -0.9, -1, -1.25, -1.5, -4], [0, 0, -1, -1.25, -1.5, -4], [1, 1, 0, 0, 0, 0]),
    (PPOClip(), 0.0, [0, 0, 0, 0, 0, 0], [0, 0, 0, 0, 0, 0], [0, 0, 0, 0, 0, 0]),
]


def ready(weights, old_logprobs=None):
    trajectories = record([[2]] * len(weights), [[3] * len(row) for row in weights])
    old_BT = None if old_logprobs is None else torch.tensor(old_logprobs, dtype=torch.float64)
    return trajectories.replace(weights_BT=torch.tensor(weights, dtype=torch.float64), old_logprobs_BT=old_BT)


@pytest.mark.parametrize(("objective", "weight", "surrogate", "slope", "clipped"), CASES)
def test_ppo_clip(objective, weight, surrogate, slope, clipped):
    logprobs_BT = (torch.tensor([RATIOS], dtype=torch.float64).log() - 2).requires_grad_()
    result = objective(logprobs_BT, ready([[weight] * 6], [[-2.0] * 6]))
    result.losses_BT.sum().backward()
    assert (-result.losses_BT).tolist() == [pytest.approx(surrogate)]
    assert (-logprobs_BT.grad).tolist() == [pytest.approx(slope)]
    assert result.watched_BT["clip_ratio/region_mean"].tolist() == [clipped]
    assert result.watched_BT["ratio"].tolist() == [pytest.approx(RATIOS)]
    assert not any(watched_BT.requires_grad for watched_BT in result.watched_BT.values())


WEIGHTS = [[2.0, -0.5, 0.0], [-3.0, 1.0, 0.25]]
LOGPROBS = [[-1.0, -2.0, -3.0], [-0.5, -4.0, -0.1]]


def test_policy_gradient():
    logprobs_BT = torch.tensor(LOGPROBS, dtype=torch.float64, requires_grad=True)
    result = PolicyGradient()(logprobs_BT, ready(WEIGHTS, [[9.0] * 3] * 2))
    result.losses_BT.sum().backward()
    assert result.losses_BT.tolist() == [[2.0, -1.0, 0.0], [-1.5, 4.0, 0.025]]
    assert logprobs_BT.grad.tolist() == [[-2.0, 0.5, 0.0], [3.0, -1.0, -0.25]]
    assert not result.watched_BT


@pytest.mark.parametrize("objective", [PPOClip(), CLIP_HIGHER, DUAL, PPOClip(clip_low=0, clip_high=0)], ids=repr)
@pytest.mark.parametrize("old", [None, LOGPROBS], ids=["without old", "old the same"])
def test_ppo_clip_on_policy_is_the_policy_gradient(objective, old):
    logprobs_BT = torch.tensor(LOGPROBS, dtype=torch.float64, requires_grad=True)
    result = objective(logprobs_BT, ready(WEIGHTS, old))
    result.losses_BT.sum().backward()
    assert (-result.losses_BT).tolist() == WEIGHTS
    assert (-logprobs_BT.grad).tolist() == WEIGHTS
    assert not result.watched_BT["clip_ratio/region_mean"].any()


def test_only_ppo_clip_corrects_for_updates_since_the_rollout():
    assert PPOClip.off_policy
    assert not PolicyGradient.off_policy


@pytest.mark.parametrize(
    "fields",
    [{"clip_low": -0.1}, {"clip_low": 1.1}, {"clip_high": -0.1}, {"dual_clip": 1.0}, {"epsilon": 0.2}],
    ids=str,
)
def test_options_are_checked(fields):
    with pytest.raises(pydantic.ValidationError, match=next(iter(fields))):
        PPOClip(**fields)
