"""Masked reductions, group reductions, and what is read off logits."""

from typing import NamedTuple

import torch
from torch import Tensor


def masked_sum(values_BT: Tensor, mask_BT: Tensor) -> Tensor:
    """Sum over the tokens that count, one number a row; what the mask hides may be anything, NaN included."""
    return torch.where(mask_BT, values_BT, torch.zeros((), dtype=values_BT.dtype, device=values_BT.device)).sum(-1)


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean over all the elements that count; 0 where none does."""
    return masked_sum(values, mask).sum() / mask.sum().clamp(min=1)


def group_sum(values_B: Tensor, group_B: Tensor) -> Tensor:
    """The sum over each row's group, given back to every row of it."""
    groups = int(group_B.max()) + 1 if group_B.numel() else 0
    totals = torch.zeros(groups, dtype=values_B.dtype, device=values_B.device)
    return totals.index_add(0, group_B, values_B)[group_B]


class TokenStatistics(NamedTuple):
    """What the trainer reads off the logits at response positions."""

    logprobs: Tensor
    """Log-probability of the token that was taken, nats."""
    entropy: Tensor | None
    """Entropy over the whole vocabulary, nats."""
    sum_squared_probs: Tensor | None
    """Sum over the vocabulary of the squared probability."""
    hidden: Tensor | None = None
    """The hidden state that the logits were made from, with one more dimension."""


def token_statistics(
    logits_NV: Tensor, tokens_N: Tensor, temperature: float, *, distribution: bool = False
) -> TokenStatistics:
    """Log-probabilities of `tokens_N` under softmax(logits / temperature), in float32 or wider.

    With `distribution`, also entropy and the sum of squared probabilities.
    """
    logits_NV = logits_NV.float() if logits_NV.dtype in (torch.bfloat16, torch.float16) else logits_NV
    if temperature != 1.0:
        logits_NV = logits_NV / temperature
    logprobs_N = logits_NV.gather(-1, tokens_N[..., None]).squeeze(-1) - logits_NV.logsumexp(-1)
    if not distribution:
        return TokenStatistics(logprobs_N, None, None)
    logp_NV = logits_NV.log_softmax(-1)
    probs_NV = logp_NV.exp()
    # A token of probability 0 adds nothing; its -inf is replaced before the product, or the gradient would be NaN.
    entropy_N = -(probs_NV * logp_NV.masked_fill(probs_NV == 0, 0.0)).sum(-1)
    return TokenStatistics(logprobs_N, entropy_N, probs_NV.square().sum(-1))


def k1(logratio: Tensor) -> Tensor:
    """log(p/q): unbiased for KL(p, q) in value when samples come from p, where logratio = log p - log q."""
    return logratio


def k2(logratio: Tensor) -> Tensor:
    """Half the squared log-ratio: never negative, low variance, biased in value."""
    return 0.5 * logratio.square()


def k3(logratio: Tensor) -> Tensor:
    """q/p - 1 - log(q/p): never negative and unbiased in value."""
    return torch.expm1(-logratio) + logratio
