"""GSPO and LUSPO: the clipped surrogate with the length-normalised ratio of the response."""

from typing import ClassVar

from pydantic import Field
from torch import Tensor

from tpg.component import component
from tpg.objectives.base import Objective, TokenLosses, weights
from tpg.objectives.ratios import NO_CLIP, clipped_surrogate, lengths, response_log_ratios, shared_ratios
from tpg.objectives.sequence_clip import SequenceClip
from tpg.trajectories import Trajectories


@component
class LUSPO(Objective):
    """`-min(s A, clip(s, 1 - clip_low, 1 + clip_high) A)` on every token, `s = (pi / pi_old)^(1/|o|)` of the response.

    GSPO's loss times the response's length, which undoes the division by it: with `aggregation=sequence_sum` it is the
    policy gradient while on-policy. (arXiv 2602.05261.) Weights may differ from token to token, as in GSPO-token.
    """

    off_policy: ClassVar[bool] = True

    clip_low: float = Field(default=3e-4, ge=0, le=1)
    clip_high: float = Field(default=4e-4, ge=0)

    def without(self) -> dict[str, Objective]:
        """Without the clip; then with the whole ratio, which is exact importance sampling."""
        unclipped = LUSPO(clip_low=1.0, clip_high=NO_CLIP)
        if self != unclipped:
            return {"clipping": unclipped}
        return {"length-normalised ratio": SequenceClip(clip_low=1.0, clip_high=NO_CLIP)}

    def __call__(self, logprobs_BT: Tensor, trajectories: Trajectories) -> TokenLosses:
        """The clipped surrogate's negative; `clip_ratio/region_mean` is the share of tokens where it binds."""
        mean_B1 = response_log_ratios(logprobs_BT, trajectories) / lengths(trajectories)
        ratio_BT = shared_ratios(mean_B1, logprobs_BT, trajectories)
        surrogate_BT, clipped_BT = clipped_surrogate(ratio_BT, weights(trajectories), self.clip_low, self.clip_high)
        return TokenLosses(-surrogate_BT, {"clip_ratio/region_mean": clipped_BT, "ratio": ratio_BT.detach()})


@component
class GSPO(LUSPO):
    """LUSPO's token losses over the response's length: their mean over the response, as GSPO was published.

    With `aggregation=sequence_sum`, which sums over tokens and takes the mean over responses. A token of a long
    response weighs less: biased. (arXiv 2507.18071, in its form GSPO-token.)
    """

    def without(self) -> dict[str, Objective]:
        """Without the division by length; without the clip."""
        parts: dict[str, Objective] = {
            "length normalisation": LUSPO(clip_low=self.clip_low, clip_high=self.clip_high),
        }
        unclipped = GSPO(clip_low=1.0, clip_high=NO_CLIP)
        return parts if self == unclipped else parts | {"clipping": unclipped}

    def __call__(self, logprobs_BT: Tensor, trajectories: Trajectories) -> TokenLosses:
        """Each token's share of the response's loss."""
        losses = LUSPO.__call__(self, logprobs_BT, trajectories)
        return TokenLosses(losses.losses_BT / lengths(trajectories), losses.watched_BT)
