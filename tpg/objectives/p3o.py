"""P3O: pairs of responses to one prompt."""

from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from tpg.component import component
from tpg.objectives.base import Objective, TokenLosses, weights
from tpg.objectives.ratios import (
    bounded,
    clipped_surrogate,
    lengths,
    response_log_ratios,
    response_logprobs,
)
from tpg.trajectories import Trajectories


@component
class P3O(Objective):
    """`-d (log pi(y_i) - log pi(y_j)) / 2` for every pair of a group, d the difference of their rewards.

    On-policy its gradient is RLOO's, for groups of any size; a baseline makes no difference. (arXiv 2310.00212.) The
    rewards' differences are read off the weights: take an estimator whose weights differ as the rewards do
    (`reinforce`, `group_mean`); those of `rloo` differ G/(G-1) times as much. With `r_i` the response's probability
    ratio to the policy before the update and `clip` to [1 - clip_low, 1 + clip_high] the pair's loss is

    - `none`: `-(r_i d - r_j d) / 2`, exact importance sampling;
    - `separate`, the paper's V1: `-(min(r_i d, clip(r_i) d) + min(-r_j d, -clip(r_j) d)) / 2`;
    - `joint`, the paper's V2: `-sg[clip(r_i r_j)] d (log pi(y_i) - log pi(y_j)) / 2`.

    A response's loss is the mean over the others of its own part of their pairs, without the half, spread evenly over
    its tokens: the mean over a group's responses is the mean over its pairs.
    """

    off_policy: ClassVar[bool] = True
    needs_groups: ClassVar[bool] = True
    response_level: ClassVar[bool] = True

    clipping: Literal["separate", "joint", "none"] = "joint"
    clip_low: float = Field(default=0.2, ge=0, le=1)
    clip_high: float = Field(default=0.2, ge=0)

    def without(self) -> dict[str, Objective]:
        """Without the clip."""
        unclipped = P3O(clipping="none", clip_low=self.clip_low, clip_high=self.clip_high)
        return {} if self == unclipped else {"clipping": unclipped}

    def __call__(self, logprobs_BT: Tensor, trajectories: Trajectories) -> TokenLosses:
        """Each token's share; `clip_ratio/region_mean` is the share of a response's pairs where the clip binds."""
        log_ratio_B1 = response_log_ratios(logprobs_BT, trajectories)
        ratio_B1 = bounded(log_ratio_B1).exp()
        paired_BB = pairs(trajectories)
        weight_B = response_weights(trajectories)
        gap_BB = torch.where(paired_BB, weight_B[:, None] - weight_B, 0.0)
        if self.clipping == "joint":
            product_BB = bounded(log_ratio_B1 + log_ratio_B1.T).exp().detach()
            factor_BB = product_BB.clamp(1 - self.clip_low, 1 + self.clip_high)
            gain_BB = factor_BB * gap_BB * response_logprobs(logprobs_BT, trajectories)[:, None]
            clipped_BB = ((factor_BB != product_BB) & (gap_BB != 0)).float()
        elif self.clipping == "separate":
            gain_BB, clipped_BB = clipped_surrogate(ratio_B1, gap_BB, self.clip_low, self.clip_high)
        else:
            gain_BB, clipped_BB = ratio_B1 * gap_BB, torch.zeros_like(gap_BB)
        others_B = paired_BB.sum(-1).clamp(min=1)
        loss_B = -gain_BB.sum(-1) / others_B
        mask_BT = trajectories.action_mask_BT
        watched = {
            "clip_ratio/region_mean": (clipped_BB.sum(-1) / others_B)[:, None].expand_as(mask_BT),
            "ratio": ratio_B1.detach().expand_as(mask_BT),
        }
        return TokenLosses(loss_B[:, None] / lengths(trajectories) * mask_BT, watched)


def pairs(trajectories: Trajectories) -> Tensor:
    """Which are two scored responses to one prompt, (B, B) bool."""
    group_B, scored_B = trajectories.group_B, trajectories.scored_B
    paired_BB = (group_B[:, None] == group_B) & ~torch.eye(len(group_B), dtype=torch.bool, device=group_B.device)
    return paired_BB if scored_B is None else paired_BB & scored_B[:, None] & scored_B


def response_weights(trajectories: Trajectories) -> Tensor:
    """The weight of each response, (B,): that of its first token that the policy chose, 0 if there is none."""
    first_B1 = trajectories.action_mask_BT.long().argmax(-1, keepdim=True)
    return weights(trajectories).gather(-1, first_B1).squeeze(-1)
