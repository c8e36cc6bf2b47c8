"""RLOO: the other responses to the prompt are the baseline."""

from typing import ClassVar

from torch import Tensor

from tpg.component import component
from tpg.estimators.base import Answers, GroupedRewards, ResponseLevelEstimator


@component
class RLOO(ResponseLevelEstimator):
    """`R_i - mean of the other rewards of its group`. Unbiased. (arXiv 2402.14740.)"""

    min_group: ClassVar[int] = 2

    def advantages(self, grouped: GroupedRewards, answers: Answers) -> Tensor:
        """`R_i - mean_{j != i} R_j`."""
        shifted_B = grouped.shifted_B
        return shifted_B - (grouped.sum(shifted_B) - shifted_B) / (grouped.size_B - 1).clamp(min=1)
