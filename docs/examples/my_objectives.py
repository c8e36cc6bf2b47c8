"""An objective: log-probabilities and weights to token losses."""

from typing import ClassVar

from pydantic import Field
from torch import Tensor

from tpg.component import component
from tpg.objectives.base import Objective, TokenLosses, weights
from tpg.objectives.ppo_clip import PPOClip
from tpg.objectives.ratios import NO_CLIP, token_ratios
from tpg.trajectories import Trajectories


@component
class QuadraticPull(Objective):
    """`-(r A - |A| (r - 1)^2 / (2 width))` with r the token's probability ratio.

    The gradient is gone once r is `width` away from 1 to the side that A favours.
    """

    off_policy: ClassVar[bool] = True

    width: float = Field(default=0.2, gt=0)

    def without(self) -> dict[str, Objective]:
        """With the ratio alone."""
        return {"quadratic pull": PPOClip(clip_low=1.0, clip_high=NO_CLIP)}

    def __call__(self, logprobs_BT: Tensor, trajectories: Trajectories) -> TokenLosses:
        """The second part is 0 while the policy has not moved. What is watched becomes a metric of that name."""
        weights_BT = weights(trajectories)
        ratio_BT = token_ratios(logprobs_BT, trajectories)
        pull_BT = weights_BT.abs() * (ratio_BT - 1).square() / (2 * self.width)
        return TokenLosses(pull_BT - ratio_BT * weights_BT, {"ratio": ratio_BT.detach()})
