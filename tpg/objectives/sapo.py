"""SAPO: a smooth gate in place of the clip."""

from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from tpg.component import component
from tpg.objectives.base import Objective, TokenLosses, weights
from tpg.objectives.ppo_clip import PPOClip
from tpg.objectives.ratios import NO_CLIP, token_ratios
from tpg.trajectories import Trajectories


@component
class SAPO(Objective):
    """`-(4 / tau) sigmoid(tau (r - 1)) A` with r the token's probability ratio. (arXiv 2511.20347.)

    The gradient fades as r leaves 1, where it is the policy gradient's; a larger `tau` fades sooner.
    """

    off_policy: ClassVar[bool] = True

    tau_positive: float = Field(default=1.0, gt=0)
    """For positive weights."""
    tau_negative: float = Field(default=1.05, gt=0)
    """For the others."""

    def without(self) -> dict[str, Objective]:
        """With the ratio itself."""
        return {"soft gate": PPOClip(clip_low=1.0, clip_high=NO_CLIP)}

    def __call__(self, logprobs_BT: Tensor, trajectories: Trajectories) -> TokenLosses:
        """The gated surrogate's negative."""
        weights_BT = weights(trajectories)
        ratio_BT = token_ratios(logprobs_BT, trajectories)
        tau_BT = torch.where(weights_BT > 0, self.tau_positive, self.tau_negative).to(weights_BT)
        gate_BT = 4 / tau_BT * torch.sigmoid(tau_BT * (ratio_BT - 1))
        return TokenLosses(-gate_BT * weights_BT, {"ratio": ratio_BT.detach()})
