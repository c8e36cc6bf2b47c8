"""The plain policy gradient."""

from typing import ClassVar

from torch import Tensor

from tpg.component import component
from tpg.objectives.base import Objective, TokenLosses, weights
from tpg.trajectories import Trajectories


@component
class PolicyGradient(Objective):
    """`-A log pi`: its gradient is the weighted score function. For one update a rollout. (Williams 1992.)"""

    off_policy: ClassVar[bool] = False

    def __call__(self, logprobs_BT: Tensor, trajectories: Trajectories) -> TokenLosses:
        """`-A_t log pi(o_t)`."""
        return TokenLosses(-weights(trajectories) * logprobs_BT)
