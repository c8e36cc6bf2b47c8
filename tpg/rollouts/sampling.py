"""Drawing tokens: one uniform number a row and step, turned into a token by the inverse distribution function."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn from the policy's distribution."""

    temperature: float = 1.0
    """0 takes the likeliest token."""
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None

    @property
    def truncates(self) -> bool:
        """Whether some tokens can never be drawn; such rollouts are not samples of the policy that is trained."""
        return self.top_k is not None or (self.top_p or 1) < 1 or bool(self.min_p)


GREEDY = Sampling(temperature=0.0)


LOGITS_IN_CACHE = 1 << 19
"""Logits that a CPU draws from at a time: its passes over them are bound by memory, and so many stay in the cache."""


class Drawn(NamedTuple):
    """A token for each row and its log-probability."""

    tokens_B: Tensor
    logprobs_B: Tensor


def on_device(uniforms: Tensor, device: torch.device) -> Tensor:
    """Uniform numbers there: in float64, as they are made, where the device has it."""
    return uniforms.float().to(device) if device.type == "mps" else uniforms.to(device)


def draw(logits_BV: Tensor, uniforms_B: Tensor, sampling: Sampling) -> Drawn:
    """One token a row; `uniforms_B` in [0, 1). The log-probability is the untruncated policy's, in float32 or wider."""
    rows = max(1, LOGITS_IN_CACHE // logits_BV.shape[1] if logits_BV.device.type == "cpu" else len(logits_BV))
    parts = zip(logits_BV.split(rows), uniforms_B.split(rows), strict=True)
    tokens, logprobs = zip(*[_drawn(logits, uniforms, sampling) for logits, uniforms in parts], strict=True)
    return Drawn(torch.cat(tokens), torch.cat(logprobs))


def _drawn(logits_BV: Tensor, uniforms_B: Tensor, sampling: Sampling) -> Drawn:
    logits_BV = logits_BV.float() if logits_BV.dtype in (torch.bfloat16, torch.float16) else logits_BV
    if sampling.temperature not in (0, 1):
        logits_BV = logits_BV / sampling.temperature
    if sampling.temperature == 0:
        tokens_B, logsumexp_B = logits_BV.argmax(-1), logits_BV.logsumexp(-1)
    elif sampling.truncates:
        tokens_B, _ = _inverse_cdf(truncated(logits_BV, sampling), uniforms_B)
        logsumexp_B = logits_BV.logsumexp(-1)
    else:
        tokens_B, logsumexp_B = _inverse_cdf(logits_BV, uniforms_B)
    return Drawn(tokens_B, logits_BV.gather(-1, tokens_B[:, None])[:, 0] - logsumexp_B)


def _inverse_cdf(logits_BV: Tensor, uniforms_B: Tensor) -> tuple[Tensor, Tensor]:
    """The tokens, and the logarithm of the sum that makes the logits probabilities: one exponential for both."""
    largest_B1 = logits_BV.amax(-1, keepdim=True)
    mass_BV = (logits_BV - largest_B1).exp_().cumsum(-1)
    total_B = mass_BV[:, -1]
    # `right` skips tokens of probability zero; rounding to the very end must not step past the last one that has any.
    tokens_B = torch.searchsorted(mass_BV, (uniforms_B.to(mass_BV) * total_B)[:, None], right=True)[:, 0]
    last_B = torch.searchsorted(mass_BV, total_B[:, None].contiguous())[:, 0]
    tokens_B = torch.minimum(tokens_B, last_B).clamp(max=logits_BV.shape[-1] - 1)  # where a number is NaN
    return tokens_B, total_B.log() + largest_B1[:, 0]


def truncated(logits_BV: Tensor, sampling: Sampling) -> Tensor:
    """Logits with the tokens that may not be drawn at minus infinity: top-k first, then top-p, then min-p."""
    if sampling.top_k is not None and sampling.top_k < logits_BV.shape[-1]:
        threshold_B1 = logits_BV.topk(sampling.top_k).values[:, -1:]
        logits_BV = logits_BV.masked_fill(logits_BV < threshold_B1, -torch.inf)
    if sampling.top_p is not None and sampling.top_p < 1:
        sorted_BV, order_BV = logits_BV.sort(-1, descending=True)
        before_BV = sorted_BV.softmax(-1).cumsum(-1) - sorted_BV.softmax(-1)
        dropped_BV = torch.zeros_like(before_BV, dtype=torch.bool).scatter(-1, order_BV, before_BV >= sampling.top_p)
        logits_BV = logits_BV.masked_fill(dropped_BV, -torch.inf)
    if sampling.min_p is not None:
        probs_BV = logits_BV.softmax(-1)
        logits_BV = logits_BV.masked_fill(probs_BV < sampling.min_p * probs_BV.amax(-1, keepdim=True), -torch.inf)
    return logits_BV
