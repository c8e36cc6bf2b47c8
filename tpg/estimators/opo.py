"""OPO: long responses count for more in the baseline."""

from typing import ClassVar

from torch import Tensor

from tpg.component import component
from tpg.estimators.weighted import WeightedBaseline
from tpg.trajectories import Trajectories


@component
class OPO(WeightedBaseline):
    """`R_i - sum_j L_j R_j / sum_j L_j`, L the length in tokens that the policy chose. (arXiv 2505.23585.)

    The baseline of least variance if the squared norm of the score function is proportional to the length.
    Biased as published; unbiased with `leave_one_out`.
    """

    response_level: ClassVar[bool] = True

    def importance(self, trajectories: Trajectories) -> Tensor:
        """`L`, (B, 1), tokens."""
        return trajectories.action_mask_BT.sum(-1, keepdim=True)
