"""REINFORCE++: advantages whitened over the whole batch, over all its prompts."""

import dataclasses
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from tpg.component import component
from tpg.estimators.base import Answers, Estimator, GroupedRewards, ResponseLevelEstimator
from tpg.estimators.group import GroupMean
from tpg.estimators.reinforce import Reinforce


def over_batch_std(centered_B: Tensor, kept_B: Tensor, epsilon: float) -> Tensor:
    """Advantages of mean zero over their sample standard deviation (n-1) in the batch; what is 0 stays 0."""
    centered_B = torch.where(kept_B, centered_B, 0.0)
    # In float64, whose range the square of a float32 number does not leave.
    variance = centered_B.double().square().sum() / (kept_B.sum() - 1).clamp(min=1)
    return torch.where(centered_B == 0, 0.0, centered_B / (variance.sqrt().to(centered_B.dtype) + epsilon))


@component
class ReinforcePP(ResponseLevelEstimator):
    """`(R_i - batch mean) / (batch std + epsilon)`, for one response a prompt or more. (arXiv 2501.03262.)

    Biased twice, less the larger the batch: the response is itself in the mean, which shrinks the gradient by
    (N-1)/N in a batch of N, and in the standard deviation, which bends its direction. In a large batch what is left
    of the division is a learning rate that changes with the spread of the rewards.
    """

    min_batch: ClassVar[int] = 2

    epsilon: float = Field(default=1e-4, ge=0)
    std: bool = True

    def without(self) -> dict[str, Estimator]:
        """Without the division; without the batch mean too, once that is gone."""
        if self.std:
            return {"batch std normalisation": dataclasses.replace(self, std=False)}
        return {"self-inclusion": Reinforce()}

    def advantages(self, grouped: GroupedRewards, answers: Answers) -> Tensor:
        """`(R_i - mean) / (std + epsilon)` over all that is kept, and 0 where all rewards are equal."""
        batch = dataclasses.replace(grouped, group_B=torch.zeros_like(grouped.group_B))
        centered_B = GroupMean().advantages(batch, answers)
        return over_batch_std(centered_B, grouped.kept_B, self.epsilon) if self.std else centered_B


@component
class ReinforcePPBaseline(GroupMean):
    """`(R_i - group mean) / (std of these differences in the batch + epsilon)`. (arXiv 2501.03262.)

    Biased, less the larger the batch, by the standard deviation, of which the response is a part; and shrunk by
    (G-1)/G by the mean, as `group_mean`. All prompts are divided by one number, unlike in GRPO; and unlike in GRPO
    with the batch's standard deviation, how the groups' means differ is not part of it.
    """

    epsilon: float = Field(default=1e-4, ge=0)

    def without(self) -> dict[str, Estimator]:
        """Without the division."""
        return {"batch std normalisation": GroupMean()}

    def advantages(self, grouped: GroupedRewards, answers: Answers) -> Tensor:
        """`(R_i - mean_j R_j) / (std + epsilon)`, and 0 where all rewards of the group are equal."""
        return over_batch_std(super().advantages(grouped, answers), grouped.kept_B, self.epsilon)
