"""An estimator: rewards to one number a response, which weighs each of its tokens."""

from typing import ClassVar

from pydantic import Field
from torch import Tensor

from tpg.component import component
from tpg.estimators.base import Answers, Estimator, GroupedRewards, ResponseLevelEstimator


@component
class Shrunk(ResponseLevelEstimator):
    """`R_i - shrink * mean of the other rewards of its group`; with `scaled`, over its group's sum of such lengths."""

    min_group: ClassVar[int] = 2

    shrink: float = Field(default=0.8, ge=0, le=1)
    scaled: bool = False

    def without(self) -> dict[str, Estimator]:
        """Without what may bias it, by the name that the audit is to give it."""
        return {"scaling": Shrunk(shrink=self.shrink)} if self.scaled else {}

    def advantages(self, grouped: GroupedRewards, answers: Answers) -> Tensor:
        """What is left out of the update reads 0 in `grouped`, and counts in no sum."""
        rewards_B = grouped.rewards_B
        others_B = (grouped.sum(rewards_B) - rewards_B) / (grouped.size_B - 1).clamp(min=1)
        advantages_B = (rewards_B - self.shrink * others_B) * grouped.kept_B
        return advantages_B / (grouped.sum(advantages_B.abs()) + 1e-6) if self.scaled else advantages_B
