"""PPO's clipped surrogate."""

from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from tpg.component import component
from tpg.objectives.base import Objective, TokenLosses, weights
from tpg.objectives.ratios import NO_CLIP, clipped_surrogate, token_ratios
from tpg.objectives.sequence_clip import SequenceClip
from tpg.trajectories import Trajectories


@component
class PPOClip(Objective):
    """`-min(r A, clip(r, 1 - clip_low, 1 + clip_high) A)` with r the token's probability ratio. (arXiv 1707.06347.)

    A wider `clip_high` is DAPO's clip-higher (arXiv 2503.14476); `dual_clip` c bounds the loss of a negative weight by
    c |A| (arXiv 1912.09729).
    """

    off_policy: ClassVar[bool] = True

    clip_low: float = Field(default=0.2, ge=0, le=1)
    clip_high: float = Field(default=0.2, ge=0)
    dual_clip: float | None = Field(default=None, gt=1)

    def without(self) -> dict[str, Objective]:
        """Without the clips; then with the ratio of the whole response, which is exact importance sampling."""
        unclipped = PPOClip(clip_low=1.0, clip_high=NO_CLIP)
        if self != unclipped:
            return {"clipping": unclipped}
        return {"token-level ratio": SequenceClip(clip_low=1.0, clip_high=NO_CLIP)}

    def __call__(self, logprobs_BT: Tensor, trajectories: Trajectories) -> TokenLosses:
        """The clipped surrogate's negative; `clip_ratio/region_mean` is the share of tokens where it binds."""
        weights_BT = weights(trajectories)
        ratio_BT = token_ratios(logprobs_BT, trajectories)
        surrogate_BT, clipped_BT = clipped_surrogate(ratio_BT, weights_BT, self.clip_low, self.clip_high)
        if self.dual_clip is not None:
            floor_BT = torch.where(weights_BT < 0, self.dual_clip * weights_BT, -torch.inf)
            surrogate_BT = torch.maximum(surrogate_BT, floor_BT)
        return TokenLosses(-surrogate_BT, {"clip_ratio/region_mean": clipped_BT, "ratio": ratio_BT.detach()})
