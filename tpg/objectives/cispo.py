"""CISPO: the policy gradient with a capped importance weight."""

from typing import ClassVar

from pydantic import Field
from torch import Tensor

from tpg.component import component
from tpg.objectives.base import Objective, TokenLosses, weights
from tpg.objectives.ratios import NO_CLIP, token_ratios
from tpg.objectives.sequence_clip import SequenceClip
from tpg.trajectories import Trajectories


@component
class CISPO(Objective):
    """`-sg[clip(r, min_ratio, max_ratio)] A log pi` with r the token's probability ratio. (arXiv 2506.13585.)

    Clipped tokens keep their gradient. The paper names no number and sets no lower bound; 5 is the cap of ScaleRL's
    recipe (arXiv 2510.13786).
    """

    off_policy: ClassVar[bool] = True

    max_ratio: float = Field(default=5.0, ge=1)
    """The largest ratio itself, not its distance from 1."""
    min_ratio: float = Field(default=0.0, ge=0, le=1)
    """The smallest ratio itself."""

    def without(self) -> dict[str, Objective]:
        """Without the caps; then with the ratio of the whole response, which is exact importance sampling."""
        unclipped = CISPO(max_ratio=NO_CLIP)
        if self != unclipped:
            return {"clipping": unclipped}
        return {"token-level ratio": SequenceClip(clip_low=1.0, clip_high=NO_CLIP)}

    def __call__(self, logprobs_BT: Tensor, trajectories: Trajectories) -> TokenLosses:
        """The weighted log-probability's negative; `clip_ratio/region_mean` is the share of tokens beyond a cap."""
        ratio_BT = token_ratios(logprobs_BT, trajectories).detach()
        capped_BT = ratio_BT.clamp(self.min_ratio, self.max_ratio)
        watched = {"clip_ratio/region_mean": (capped_BT != ratio_BT).float(), "ratio": ratio_BT}
        return TokenLosses(-capped_BT * weights(trajectories) * logprobs_BT, watched)
