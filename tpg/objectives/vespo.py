"""VESPO: the policy gradient with a smoothly reshaped importance weight of the whole response."""

from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from tpg.component import component
from tpg.objectives.base import Objective, TokenLosses, weights
from tpg.objectives.ratios import LOG_RATIO_LIMIT, NO_CLIP, bounded, response_log_ratios
from tpg.objectives.sequence_clip import SequenceClip
from tpg.trajectories import Trajectories


@component
class VESPO(Objective):
    """`-sg[e^lambda w^k e^(-lambda w)] A log pi` with w the probability ratio of the whole response.

    The factor is 1 at w = 1 and largest at w = k / lambda; it never exceeds e^20. The suffixes tell the sign of the
    weight, 0 being positive. (arXiv 2602.10693.)
    """

    off_policy: ClassVar[bool] = True

    k_positive: float = Field(default=2.0, ge=0)
    lambda_positive: float = Field(default=3.0, ge=0)
    k_negative: float = Field(default=3.0, ge=0)
    lambda_negative: float = Field(default=2.0, ge=0)

    def without(self) -> dict[str, Objective]:
        """With the ratio itself, which is exact importance sampling."""
        return {"reshaped importance weights": SequenceClip(clip_low=1.0, clip_high=NO_CLIP)}

    def __call__(self, logprobs_BT: Tensor, trajectories: Trajectories) -> TokenLosses:
        """The weighted log-probability's negative; `ratio` is that of the whole response."""
        weights_BT = weights(trajectories)
        log_ratio_B1 = bounded(response_log_ratios(logprobs_BT, trajectories).detach())
        ratio_B1 = log_ratio_B1.exp()
        positive_B1 = self.k_positive * log_ratio_B1 + self.lambda_positive * (1 - ratio_B1)
        negative_B1 = self.k_negative * log_ratio_B1 + self.lambda_negative * (1 - ratio_B1)
        exponent_BT = torch.where(weights_BT >= 0, positive_B1, negative_B1)
        factor_BT = exponent_BT.clamp(max=LOG_RATIO_LIMIT).exp()
        return TokenLosses(-factor_BT * weights_BT * logprobs_BT, {"ratio": ratio_B1.expand_as(weights_BT)})
