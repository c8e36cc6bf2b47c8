"""Estimators that see what no training run can: yardsticks for those that do not."""

from typing import ClassVar

from torch import Tensor

from tpg.component import component
from tpg.estimators.base import Answers, Estimator
from tpg.trajectories import Trajectories


@component
class TokenRewardToGo(Estimator):
    """The sum of the hidden token-level rewards from each token on: what the response-level reward stands in for.

    The policy gradient of token-level rewards. (Lemma 1 of arXiv 2506.02553, with its discount within the rewards.)
    """

    sees_token_rewards: ClassVar[bool] = True
    """The worlds put the hidden rewards in the place of a critic's values."""

    def weights(self, trajectories: Trajectories, answers: Answers) -> Tensor:
        """`sum_{u >= t} r_u`."""
        assert trajectories.values_BT is not None
        counts_BT = self.kept(trajectories, answers)[:, None] & trajectories.action_mask_BT
        rewards_BT = trajectories.values_BT.masked_fill(~counts_BT, 0.0)
        return rewards_BT.flip(-1).cumsum(-1).flip(-1) * counts_BT
