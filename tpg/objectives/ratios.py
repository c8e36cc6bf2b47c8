"""Probability ratios of the policy to the one before the update, of tokens and of whole responses."""

import torch
from torch import Tensor

from tpg.numerics import masked_sum
from tpg.objectives.base import old_logprobs
from tpg.trajectories import Trajectories

LOG_RATIO_LIMIT = 20.0
"""Nats: a ratio lies within e^-20 and e^20 (4.9e8), so that no product or square of it overflows."""
NO_CLIP = 1e9
"""A `clip_high` that no ratio reaches."""


def log_ratios(logprobs_BT: Tensor, trajectories: Trajectories) -> Tensor:
    """`log pi - log pi_old` of every token, nats, with gradient; 0 where the policy chose nothing."""
    return (logprobs_BT - old_logprobs(logprobs_BT, trajectories)).masked_fill(~trajectories.action_mask_BT, 0.0)


def bounded(log_ratio: Tensor) -> Tensor:
    """Within `LOG_RATIO_LIMIT`; the gradient goes through unchanged."""
    return log_ratio.detach().clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT) + (log_ratio - log_ratio.detach())


def token_ratios(logprobs_BT: Tensor, trajectories: Trajectories) -> Tensor:
    """`pi / pi_old` of every token, (B, T); 1 where the policy chose nothing."""
    return bounded(log_ratios(logprobs_BT, trajectories)).exp()


def response_log_ratios(logprobs_BT: Tensor, trajectories: Trajectories) -> Tensor:
    """`log pi - log pi_old` of the whole response, (B, 1), nats, with gradient."""
    return log_ratios(logprobs_BT, trajectories).sum(-1, keepdim=True)


def shared_ratios(log_ratio_B1: Tensor, logprobs_BT: Tensor, trajectories: Trajectories) -> Tensor:
    """A response's ratio on each of its tokens, (B, T); the gradient at a token is the ratio times its own score.

    `sg[ratio] * pi_t / sg[pi_t]`, as GSPO-token has it (arXiv 2507.18071). Summed over a response of weight A the
    gradient is `A ratio S`, S the whole response's score, as that of `A ratio` counted once; and it is right for
    weights that differ from token to token too.
    """
    mask_BT = trajectories.action_mask_BT
    own_BT = torch.where(mask_BT, logprobs_BT, 0.0)
    return bounded(log_ratio_B1.detach() + (own_BT - own_BT.detach())).exp()


def lengths(trajectories: Trajectories) -> Tensor:
    """Tokens that the policy chose in each response, (B, 1), at least 1."""
    return trajectories.action_mask_BT.sum(-1, keepdim=True).clamp(min=1)


def response_logprobs(logprobs_BT: Tensor, trajectories: Trajectories) -> Tensor:
    """The log-probability of each whole response, (B,), nats."""
    return masked_sum(logprobs_BT, trajectories.action_mask_BT)


def clipped_surrogate(ratio: Tensor, weight: Tensor, clip_low: float, clip_high: float) -> tuple[Tensor, Tensor]:
    """`min(r A, clip(r, 1 - clip_low, 1 + clip_high) A)`, and 1.0 where the clip binds, else 0.0."""
    free = ratio * weight
    clipped = ratio.clamp(1 - clip_low, 1 + clip_high) * weight
    return torch.minimum(free, clipped), (clipped < free).float().detach()
