"""Expected gradients by complete enumeration of a tabular softmax policy, in float64."""

import itertools

import pytest
import torch
from builders import record
from torch import Tensor

from tpg.aggregation import MinibatchSize, SequenceSum
from tpg.estimators.base import Answers
from tpg.estimators.group import GRPO, GroupMean
from tpg.estimators.reinforce import Reinforce
from tpg.estimators.remax import ReMax
from tpg.estimators.rloo import RLOO
from tpg.objectives.policy_gradient import PolicyGradient
from tpg.objectives.ppo_clip import PPOClip

# Two tokens, two steps, zero logits; rows of logits are the prefixes (), 0 and 1; responses 00, 01, 10, 11.
REWARDS = [0.0, 0.0, 1.0, 3.0]
TRUE_GRADIENT = [[-0.5, 0.5], [0.0, 0.0], [-0.25, 0.25]]


def responses(vocabulary: int, length: int) -> list[tuple[int, ...]]:
    return list(itertools.product(range(vocabulary), repeat=length))


def prefixes(vocabulary: int, length: int) -> list[tuple[int, ...]]:
    return [prefix for step in range(length) for prefix in responses(vocabulary, step)]


def response_logprobs(logits_SV: Tensor, length: int) -> Tensor:
    """The log-probability of every token of every response, (number of responses, length)."""
    vocabulary = logits_SV.shape[-1]
    state = {prefix: i for i, prefix in enumerate(prefixes(vocabulary, length))}
    logp_SV = logits_SV.log_softmax(-1)
    rows = [[logp_SV[state[r[:t]], r[t]] for t in range(length)] for r in responses(vocabulary, length)]
    return torch.stack([torch.stack(row) for row in rows])


def moments(estimator, objective, logits_SV: Tensor, rewards: list[float], group: int) -> tuple[Tensor, float]:
    """The mean of the estimated gradient over all groups of `group` responses, and its covariance's trace."""
    vocabulary = logits_SV.shape[-1]
    length = {len(responses(vocabulary, t)): t for t in range(1, 5)}[len(rewards)]
    logits_SV = logits_SV.clone().requires_grad_()
    logprobs_RT = response_logprobs(logits_SV, length)
    probability_R = logprobs_RT.detach().sum(-1).exp()
    tokens = responses(vocabulary, length)
    greedy = int(probability_R.argmax())  # any fixed response would do
    size = MinibatchSize(responses=group, tokens=group * length, max_response_tokens=length)
    mean, square = torch.zeros_like(logits_SV), 0.0
    for drawn in itertools.product(range(len(rewards)), repeat=group):
        trajectories = record(
            [[0]] * group,
            [list(tokens[r]) for r in drawn],
            row_B=torch.zeros(group, dtype=torch.long),
            rewards_B=torch.tensor([rewards[r] for r in drawn], dtype=torch.float64),
            scored_B=torch.ones(group, dtype=torch.bool),
        )
        answers = Answers(torch.full((group,), rewards[greedy]).double(), torch.ones(group, dtype=torch.bool))
        trajectories = trajectories.replace(weights_BT=estimator.weights(trajectories, answers))
        losses_BT = objective(logprobs_RT[list(drawn)], trajectories).losses_BT
        loss = SequenceSum()(losses_BT, trajectories.action_mask_BT, size)
        (slope,) = torch.autograd.grad(-loss, logits_SV, retain_graph=True)
        probability = probability_R[list(drawn)].prod()
        mean += probability * slope
        square += float(probability * slope.square().sum())
    return mean, square - float(mean.square().sum())


@pytest.mark.parametrize("objective", [PolicyGradient(), PPOClip(), PPOClip(clip_high=0.28, dual_clip=3.0)], ids=repr)
@pytest.mark.parametrize(
    ("estimator", "group", "scale", "variance"),
    [
        (Reinforce(), 1, 1.0, 1.875),
        (Reinforce(baseline=1.0), 1, 1.0, 0.875),
        (Reinforce(), 2, 1.0, 0.9375),
        (ReMax(), 1, 1.0, None),
        (RLOO(), 2, 1.0, 1.5),
        (RLOO(), 3, 1.0, 0.645833),
        (GroupMean(), 2, 0.5, None),
        (GroupMean(), 3, 2 / 3, None),
    ],
    ids=repr,
)
def test_hand_example(estimator, objective, group, scale, variance):
    mean, trace = moments(estimator, objective, torch.zeros(3, 2, dtype=torch.float64), REWARDS, group)
    torch.testing.assert_close(mean, scale * torch.tensor(TRUE_GRADIENT).double(), rtol=0, atol=1e-10)
    if variance is not None:
        assert trace == pytest.approx(variance, abs=1e-6)


def three_by_three() -> tuple[Tensor, list[float], Tensor]:
    """A policy over three tokens and three steps, a reward for each response, and the true gradient."""
    draws = torch.randn(40, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    logits_SV = draws[:39].reshape(13, 3).requires_grad_()
    rewards_R = torch.sin(torch.arange(27, dtype=torch.float64) * 1.7) + torch.arange(27) / 9
    expected_reward = (response_logprobs(logits_SV, 3).sum(-1).exp() * rewards_R).sum()
    (gradient,) = torch.autograd.grad(expected_reward, logits_SV)
    return logits_SV.detach(), rewards_R.tolist(), gradient


@pytest.mark.parametrize(
    ("estimator", "group", "scale"),
    [(Reinforce(baseline=0.4), 1, 1.0), (ReMax(), 1, 1.0), (RLOO(), 2, 1.0), (GroupMean(), 2, 0.5)],
    ids=repr,
)
def test_exact_on_a_random_policy(estimator, group, scale):
    logits_SV, rewards, gradient = three_by_three()
    mean, _ = moments(estimator, PolicyGradient(), logits_SV, rewards, group)
    torch.testing.assert_close(mean, scale * gradient, rtol=0, atol=1e-10 * float(gradient.norm()))


@pytest.mark.parametrize("std", ["group", "batch"])
def test_dividing_by_the_standard_deviation_is_biased(std):
    logits_SV, rewards, gradient = three_by_three()
    mean, _ = moments(GRPO(std=std), PolicyGradient(), logits_SV, rewards, 2)
    cosine = torch.nn.functional.cosine_similarity(mean.flatten(), gradient.flatten(), dim=0)
    assert 0.5 < cosine < 0.999
