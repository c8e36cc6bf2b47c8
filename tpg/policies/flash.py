"""Attention with its logsumexp, forward and backward, so that attention over several sets of keys can be put together.

Softmax over two sets of keys is the mean of the softmaxes over each, weighted by the exponentials of their logsumexps.
The gradient needs no more: each set's backward pass, given the output and the logsumexp over all the keys, yields its
share of it. Queries are (B, heads, S, D), keys and values (B, key-value heads, K, D), logsumexps (B, heads, S).
"""

import functools
import warnings
from collections.abc import Sequence

import torch
from torch import Tensor

HALVES = (torch.bfloat16, torch.float16)


def in_linear_memory(device: str, dtype: torch.dtype) -> bool:
    """Whether a device's kernel takes what a model held in `dtype` computes; else scores are held, a length squared."""
    if torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
    return device == "cpu" or (device == "cuda" and dtype in HALVES)


def attend(query: Tensor, key: Tensor, value: Tensor, scale: float, *, causal: bool) -> tuple[Tensor, Tensor]:
    """The attended values and the logsumexp of the scores."""
    return _attend(_kernel(query), query, key, value, scale, causal)


def _attend(
    kernel: str | None, query: Tensor, key: Tensor, value: Tensor, scale: float, causal: bool
) -> tuple[Tensor, Tensor]:
    if kernel == "cpu":
        return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(query, key, value, 0.0, causal, scale=scale)
    if kernel == "cuda":
        found = torch.ops.aten._scaled_dot_product_flash_attention(query, key, value, 0.0, causal, scale=scale)
        return found[0], found[1]
    scores = _scores(query, key, scale, causal)
    logsumexp = scores.logsumexp(-1)
    probs = (scores - logsumexp[..., None]).exp().to(value.dtype)
    return (probs @ _repeated(value, query)), logsumexp


def attend_backward(given: Sequence[Tensor], scale: float, *, causal: bool) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of query, key and value.

    `given` is the gradient of the output, then query, key, value, output and logsumexp; the last two may be over more
    keys than these.
    """
    return _attend_backward(_kernel(given[1]), given, scale, causal)


def _attend_backward(
    kernel: str | None, given: Sequence[Tensor], scale: float, causal: bool
) -> tuple[Tensor, Tensor, Tensor]:
    slope, query, key, value, out, logsumexp = given
    if kernel == "cpu":
        # In float32 this takes a third of the time that it takes in bfloat16.
        wide = torch.promote_types(query.dtype, torch.float32)
        slope, query, key, value, out = (tensor.to(wide) for tensor in (slope, query, key, value, out))
        return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
            slope, query, key, value, out, logsumexp.to(wide), 0.0, causal, scale=scale
        )
    if kernel == "cuda":
        nothing = torch.zeros(2, dtype=torch.uint64, device=query.device)
        return torch.ops.aten._scaled_dot_product_flash_attention_backward(
            *(slope, query, key, value, out, logsumexp.contiguous(), None, None, query.shape[2], key.shape[2]),
            *(0.0, causal, nothing, nothing[:0]),
            scale=scale,
        )
    probs = (_scores(query, key, scale, causal) - logsumexp[..., None]).exp()
    slope = slope.to(probs.dtype)
    probs_slope = slope @ _repeated(value, query).to(probs.dtype).mT
    inner = (slope * out).sum(-1, keepdim=True)
    scores_slope = probs * (probs_slope - inner) * scale
    query_slope = scores_slope @ _repeated(key, query).to(probs.dtype)
    key_slope, value_slope = scores_slope.mT @ query.to(probs.dtype), probs.mT @ slope
    shared = query.shape[1] // key.shape[1]
    return query_slope, key_slope.unflatten(1, (-1, shared)).sum(2), value_slope.unflatten(1, (-1, shared)).sum(2)


def _kernel(query: Tensor) -> str | None:
    """Whose kernel takes such tensors; None: plain products do."""
    if query.device.type == "cpu":
        return "cpu"
    size = query.shape[-1]
    if query.device.type == "cuda" and query.dtype in HALVES and size % 8 == 0 and size <= 256:
        return "cuda" if _right_on_cuda(query.dtype, size) else None
    return None


@functools.cache
def _right_on_cuda(dtype: torch.dtype, size: int) -> bool:
    """Whether torch's private functions do here what they are used for; tried once, against plain products."""
    reason = ""
    generator = torch.Generator("cuda").manual_seed(0)
    shapes = [(2, 4, 24, size)] * 2 + [(2, 2, 24, size)] * 2
    slope, query, key, value = (torch.randn(shape, generator=generator, dtype=dtype, device="cuda") for shape in shapes)
    try:
        for causal in (True, False):
            found, expected = (_there_and_back(kernel, slope, query, key, value, causal) for kernel in ("cuda", None))
            for one, other in zip(found, expected, strict=True):
                torch.testing.assert_close(one.float(), other.float(), rtol=0.05, atol=0.05)
    except (RuntimeError, TypeError, AttributeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        warnings.warn(f"flash attention is not used for the update: {reason}", stacklevel=2)
    return not reason


def _there_and_back(
    kernel: str | None, slope: Tensor, query: Tensor, key: Tensor, value: Tensor, causal: bool
) -> list[Tensor]:
    out, total = _attend(kernel, query, key, value, 0.3, causal)
    return [out, total, *_attend_backward(kernel, (slope, query, key, value, out, total), 0.3, causal)]


def _scores(query: Tensor, key: Tensor, scale: float, causal: bool) -> Tensor:
    """In float32 or wider."""
    wide = torch.promote_types(query.dtype, torch.float32)
    scores = (query.to(wide) * scale) @ _repeated(key, query).to(wide).mT
    if causal:
        later = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).triu(1)
        scores = scores.masked_fill(later, float("-inf"))
    return scores


def _repeated(key: Tensor, query: Tensor) -> Tensor:
    """Each key-value head once for every head that reads it."""
    return key.repeat_interleave(query.shape[1] // key.shape[1], 1)
