"""REINFORCE: the reward less a baseline that the response itself did not shape."""

from collections.abc import Mapping

from pydantic import Field
from torch import Tensor

from tpg.component import component
from tpg.estimators.base import Answers, GroupedRewards, ResponseLevelEstimator
from tpg.numerics import masked_mean
from tpg.trajectories import Trajectories


@component
class Reinforce(ResponseLevelEstimator):
    """`R - baseline` with a constant baseline. Unbiased. (Williams 1992; for LLMs arXiv 2402.14740.)"""

    baseline: float = 0.0

    def advantages(self, grouped: GroupedRewards, answers: Answers) -> Tensor:
        """`R_i - b`."""
        return grouped.rewards_B - self.baseline


@component
class ReinforceEMA(ResponseLevelEstimator):
    """`R - b`, b the exponential moving average of the mean reward of *earlier* iterations. Unbiased.

    The average is corrected for its start; before the first iteration the baseline is 0.
    """

    decay: float = Field(default=0.9, ge=0, lt=1)

    def advantages(self, grouped: GroupedRewards, answers: Answers) -> Tensor:
        """`R_i - b`."""
        weight = answers.state["weight"]
        return grouped.rewards_B - (answers.state["sum"] / weight if weight else 0.0)

    def initial_state(self) -> dict[str, float]:
        """An empty average."""
        return {"sum": 0.0, "weight": 0.0}

    def next_state(self, trajectories: Trajectories, state: Mapping[str, float]) -> dict[str, float]:
        """The average with this iteration's mean reward in it; unchanged when nothing was scored."""
        assert trajectories.rewards_B is not None
        assert trajectories.scored_B is not None
        if not trajectories.scored_B.any():
            return dict(state)
        mean = float(masked_mean(trajectories.rewards_B, trajectories.scored_B))
        return {
            "sum": self.decay * state["sum"] + (1 - self.decay) * mean,
            "weight": self.decay * state["weight"] + (1 - self.decay),
        }
