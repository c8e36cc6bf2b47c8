"""Estimators whose baseline is the mean of the whole group, the response itself included."""

from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from tpg.component import component
from tpg.estimators.base import Answers, Estimator, GroupedRewards, ResponseLevelEstimator
from tpg.estimators.rloo import RLOO


@component
class GroupMean(ResponseLevelEstimator):
    """`R_i - group mean`: the unbiased direction, shrunk by (G-1)/G. (Dr. GRPO, arXiv 2503.20783.)"""

    min_group: ClassVar[int] = 2

    def without(self) -> dict[str, Estimator]:
        """Without the response itself in its baseline."""
        return {"self-inclusion": RLOO()}

    def advantages(self, grouped: GroupedRewards, answers: Answers) -> Tensor:
        """`R_i - mean_j R_j`."""
        shifted_B = grouped.shifted_B
        return shifted_B - grouped.sum(shifted_B) / grouped.size_B


@component
class GRPO(GroupMean):
    """`(R_i - group mean) / (std + epsilon)`. Biased: the division reweighs prompts. (arXiv 2402.03300.)

    The standard deviation is the sample one (n-1) of the group, of the whole batch, or left out.
    """

    epsilon: float = Field(default=1e-4, ge=0)
    std: Literal["group", "batch", "none"] = "group"

    def without(self) -> dict[str, Estimator]:
        """Without the division; without the response itself in the mean too, once that is gone."""
        return super().without() if self.std == "none" else {"std normalisation": GroupMean()}

    def advantages(self, grouped: GroupedRewards, answers: Answers) -> Tensor:
        """`(R_i - mean_j R_j) / (std + epsilon)`, and 0 where all rewards are equal."""
        centered_B = torch.where(grouped.kept_B, super().advantages(grouped, answers), 0.0)
        if self.std == "none":
            return centered_B
        if self.std == "group":
            std_B = (grouped.sum(centered_B.square()) / (grouped.size_B - 1).clamp(min=1)).sqrt()
        else:
            kept = grouped.rewards_B[grouped.kept_B]
            std_B = kept.std() if len(kept) > 1 else torch.zeros_like(centered_B)
        return torch.where(centered_B == 0, 0.0, centered_B / (std_B + self.epsilon))
