"""Every response of a policy that is a table, so that an expected gradient is a finite sum, in float64."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import torch
from builders import record
from torch import Tensor

from tpg.aggregation import MinibatchSize
from tpg.estimators.base import Answers
from tpg.method import Method
from tpg.numerics import TokenStatistics

VOCABULARY, LENGTH = 3, 3
"""Token 0 ends a response; after three it is cut."""


def all_responses() -> list[tuple[int, ...]]:
    """The 15 responses: (0,), (1, 0), (2, 0), then twelve of three tokens."""
    going = list(range(1, VOCABULARY))
    ended = [(*head, 0) for n in range(LENGTH - 1) for head in itertools.product(going, repeat=n)]
    return ended + [(*head, last) for head in itertools.product(going, repeat=LENGTH - 1) for last in range(VOCABULARY)]


RESPONSES = all_responses()
PREFIXES = sorted({response[:t] for response in RESPONSES for t in range(len(response))})


def random_logits(seed: int, scale: float = 1.0) -> Tensor:
    """A policy: the logits of the next token after each prefix, (7, 3)."""
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(len(PREFIXES), VOCABULARY, dtype=torch.float64, generator=generator)


def token_logprobs(logits_SV: Tensor) -> Tensor:
    """The log-probability of every token of every response, (15, 3); 0 past the end."""
    logp_SV = logits_SV.log_softmax(-1)
    zero = torch.zeros((), dtype=torch.float64)
    rows = [[logp_SV[PREFIXES.index(r[:t]), r[t]] if t < len(r) else zero for t in range(LENGTH)] for r in RESPONSES]
    return torch.stack([torch.stack(row) for row in rows])


@dataclass(frozen=True)
class Problem:
    """A policy, its reference, a reward for each response and how much the divergence costs."""

    logits_SV: Tensor
    reference_SV: Tensor
    rewards_R: Tensor
    beta: float

    def true_gradient(self) -> Tensor:
        """The gradient of `E[R] - beta KL(pi, reference)`, by differentiating the sum itself."""
        logits_SV = self.logits_SV.clone().requires_grad_()
        log_R = token_logprobs(logits_SV).sum(-1)
        divergence = (log_R.exp() * (log_R - token_logprobs(self.reference_SV).sum(-1))).sum()
        value = (log_R.exp() * self.rewards_R).sum() - self.beta * divergence
        return torch.autograd.grad(value, logits_SV)[0]

    def expected_gradient(self, method: Method, group: int = 1, rollout_SV: Tensor | None = None) -> Tensor:
        """The mean over all groups of `group` responses, drawn from the rollout's policy, of the method's ascent."""
        mean = torch.zeros_like(self.logits_SV)
        for probability, slope in self.gradients(method, group, rollout_SV):
            mean += probability * slope
        return mean

    def variance(self, method: Method, group: int = 1) -> float:
        """The trace of the covariance of the method's gradient."""
        second = sum(float(probability * slope.square().sum()) for probability, slope in self.gradients(method, group))
        return second - float(self.expected_gradient(method, group).square().sum())

    def gradients(self, method: Method, group: int, rollout_SV: Tensor | None = None):  # type: ignore[no-untyped-def]
        """Every group's probability and gradient."""
        logits_SV = self.logits_SV.clone().requires_grad_()
        logprobs_RT = token_logprobs(logits_SV)
        rollout_RT = logprobs_RT.detach() if rollout_SV is None else token_logprobs(rollout_SV)
        reference_RT = token_logprobs(self.reference_SV)
        state = method.initial_state()
        for drawn in map(list, itertools.product(range(len(RESPONSES)), repeat=group)):
            trajectories = record(
                [[1]] * group,
                [list(RESPONSES[r]) for r in drawn],
                row_B=torch.zeros(group, dtype=torch.long),
                rewards_B=self.rewards_R[drawn],
                scored_B=torch.ones(group, dtype=torch.bool),
            )
            width = trajectories.response_ids_BT.shape[1]
            trajectories = trajectories.replace(
                rollout_logprobs_BT=rollout_RT[drawn, :width],
                old_logprobs_BT=logprobs_RT.detach()[drawn, :width],
                ref_logprobs_BT=reference_RT[drawn, :width],
            )
            weighed = method.weigh(trajectories, Answers(), state)
            size = MinibatchSize(group, int(trajectories.action_mask_BT.sum()), LENGTH)
            statistics = TokenStatistics(logprobs_RT[drawn, :width], None, None)
            loss = method.loss(statistics, weighed.trajectories, size, state).value
            yield (
                rollout_RT.sum(-1).exp()[drawn].prod(),
                torch.autograd.grad(-loss, logits_SV, retain_graph=True)[0],
            )


def cosine(a: Tensor, b: Tensor) -> float:
    """Of the angle between two gradients."""
    return float(torch.nn.functional.cosine_similarity(a.flatten(), b.flatten(), dim=0))


def relative_error(estimate: Tensor, truth: Tensor) -> float:
    """`|estimate - truth| / |truth|`."""
    return float((estimate - truth).norm() / truth.norm())
