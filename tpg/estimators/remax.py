"""ReMax: the greedy response is the baseline."""

from torch import Tensor

from tpg.component import component
from tpg.estimators.base import Answers, GroupedRewards, Requests, ResponseLevelEstimator
from tpg.trajectories import Trajectories


@component
class ReMax(ResponseLevelEstimator):
    """`R_i - R(greedy response)`. Unbiased, for one more response a prompt. (arXiv 2310.10505.)"""

    def requests(self, trajectories: Trajectories) -> Requests:
        """One greedy response a prompt."""
        return Requests(greedy=True)

    def kept(self, trajectories: Trajectories, answers: Answers) -> Tensor:
        """Scored, and so is the greedy response."""
        assert answers.greedy_scored_B is not None
        return super().kept(trajectories, answers) & answers.greedy_scored_B

    def advantages(self, grouped: GroupedRewards, answers: Answers) -> Tensor:
        """`R_i - R(greedy)`."""
        assert answers.greedy_rewards_B is not None
        return grouped.rewards_B - answers.greedy_rewards_B.nan_to_num().detach()
