"""The clipped surrogate with the ratio of the whole response."""

from typing import ClassVar

from pydantic import Field
from torch import Tensor

from tpg.component import component
from tpg.objectives.base import Objective, TokenLosses, weights
from tpg.objectives.ratios import NO_CLIP, clipped_surrogate, response_log_ratios, shared_ratios
from tpg.trajectories import Trajectories


@component
class SequenceClip(Objective):
    """`-min(r A, clip(r, 1 - clip_low, 1 + clip_high) A)` with r the probability ratio of the whole response.

    Off-policy RLOO (arXiv 2402.14740) as TRL has it. Unclipped it is exact importance sampling, for weights that differ
    from token to token too. Its gradient counts once a response: each token brings r A times its own score.
    """

    off_policy: ClassVar[bool] = True

    clip_low: float = Field(default=0.2, ge=0, le=1)
    clip_high: float = Field(default=0.2, ge=0)

    def without(self) -> dict[str, Objective]:
        """Without the clip."""
        unclipped = SequenceClip(clip_low=1.0, clip_high=NO_CLIP)
        return {} if self == unclipped else {"clipping": unclipped}

    def __call__(self, logprobs_BT: Tensor, trajectories: Trajectories) -> TokenLosses:
        """The clipped surrogate's negative; `clip_ratio/region_mean` is the share of tokens where it binds."""
        ratio_BT = shared_ratios(response_log_ratios(logprobs_BT, trajectories), logprobs_BT, trajectories)
        surrogate_BT, clipped_BT = clipped_surrogate(ratio_BT, weights(trajectories), self.clip_low, self.clip_high)
        return TokenLosses(-surrogate_BT, {"clip_ratio/region_mean": clipped_BT, "ratio": ratio_BT.detach()})
