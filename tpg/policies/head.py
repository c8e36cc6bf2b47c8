"""What the trainer reads off an output layer, without ever holding the logits of all tokens.

Dimensions: N tokens, H hidden, V vocabulary, C a chunk of either.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

from tpg.numerics import TokenStatistics, token_statistics

TOKENS_AT_A_TIME = 256
ROWS_IN_CACHE = 16
"""Rows of logits that are reduced at a time: statistics are bound by memory, and so many stay in the cache."""
LOGITS_AT_A_TIME = {"cpu": 1 << 22, "cuda": 1 << 26}
"""Logits that the backward pass holds; elsewhere as on a CPU."""


def head_statistics(
    head: nn.Module, hidden_NH: Tensor, tokens_N: Tensor, temperature: float, *, distribution: bool = False
) -> TokenStatistics:
    """`token_statistics` of the logits that `head` makes of the hidden states, in memory that does not grow with V * N.

    Under autocast the products are in its type, the statistics in float32. `sum_squared_probs` carries no gradient.
    """
    if not _is_plain(head):
        return _in_chunks(head, hidden_NH, tokens_N, temperature, distribution)
    weight: Any = head.weight
    device = hidden_NH.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype
    found = _Statistics.apply(hidden_NH, weight, tokens_N, temperature, distribution, dtype)
    return TokenStatistics(*found) if distribution else TokenStatistics(found[0], None, None)


class _Statistics(torch.autograd.Function):
    """Keeps the logsumexp of each token; the backward pass makes the logits again, some of the vocabulary at a time.

    So each row of the weight's gradient is one product over all tokens, which is written once.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden_NH: Tensor,
        weight_VH: Tensor,
        tokens_N: Tensor,
        temperature: float,
        distribution: bool,
        dtype: torch.dtype,
    ) -> tuple[Tensor, ...]:
        columns: list[list[Tensor]] = [[], [], [], []]
        with torch.autocast(hidden_NH.device.type, enabled=False):
            weight_HV = weight_VH.to(dtype).t()
            for hidden_CH, tokens_C in zip(
                hidden_NH.to(dtype).split(TOKENS_AT_A_TIME), tokens_N.split(TOKENS_AT_A_TIME), strict=True
            ):
                logits_CV = hidden_CH @ weight_HV
                rows = ROWS_IN_CACHE if logits_CV.device.type == "cpu" else TOKENS_AT_A_TIME
                for logits, tokens in zip(logits_CV.split(rows), tokens_C.split(rows), strict=True):
                    found = _reduced(logits, tokens, temperature, distribution)
                    for column, values in zip(columns, found, strict=False):
                        column.append(values)
        logprobs_N, logsumexp_N, *moments = (torch.cat(column) for column in columns if column)
        entropy_N = moments[0] if distribution else None
        ctx.save_for_backward(hidden_NH, weight_VH, tokens_N, logsumexp_N, entropy_N)
        ctx.temperature, ctx.dtype = temperature, dtype
        if not distribution:
            return (logprobs_N,)
        ctx.mark_non_differentiable(moments[1])
        return logprobs_N, moments[0], moments[1]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *slopes: Tensor) -> tuple[Tensor | None, ...]:
        hidden_NH, weight_VH, tokens_N, logsumexp_N, entropy_N = ctx.saved_tensors
        needs_hidden, needs_weight = ctx.needs_input_grad[:2]
        wide, temperature = logsumexp_N.dtype, ctx.temperature
        slope_N1 = slopes[0][:, None] / temperature
        entropy_slope_N1 = None if entropy_N is None else slopes[1][:, None] / temperature
        logits = LOGITS_AT_A_TIME.get(hidden_NH.device.type, LOGITS_AT_A_TIME["cpu"])
        rows = max(1, logits // max(1, len(tokens_N)))
        hidden_slope_NH = torch.zeros(hidden_NH.shape, dtype=wide, device=hidden_NH.device) if needs_hidden else None
        weight_slope_VH = torch.empty_like(weight_VH) if needs_weight else None
        with torch.autocast(hidden_NH.device.type, enabled=False):
            states_NH = hidden_NH.to(ctx.dtype)
            for first in range(0, weight_VH.shape[0], rows):
                weight_CH = weight_VH[first : first + rows].to(ctx.dtype)
                logits_NC = (states_NH @ weight_CH.t()).to(wide)
                logp_NC = logits_NC.div_(temperature) if temperature != 1.0 else logits_NC
                logp_NC = logp_NC.sub_(logsumexp_N[:, None])
                if entropy_slope_N1 is None:
                    slope_NC = logp_NC.exp_().mul_(-slope_N1)
                else:
                    assert entropy_N is not None
                    factor_NC = (logp_NC + entropy_N[:, None]).mul_(entropy_slope_N1).add_(slope_N1)
                    slope_NC = logp_NC.exp_().mul_(factor_NC).neg_()
                column_N = tokens_N - first
                inside_N = (column_N >= 0) & (column_N < len(weight_CH))
                column_N = column_N.clamp(0, len(weight_CH) - 1)
                slope_NC.scatter_add_(1, column_N[:, None], torch.where(inside_N[:, None], slope_N1, 0.0))
                slope_NC = slope_NC.to(ctx.dtype)
                if hidden_slope_NH is not None:
                    hidden_slope_NH += slope_NC @ weight_CH
                if weight_slope_VH is not None:
                    weight_slope_VH[first : first + rows] = slope_NC.t() @ states_NH
        if hidden_slope_NH is not None:
            hidden_slope_NH = hidden_slope_NH.to(hidden_NH.dtype)
        return hidden_slope_NH, weight_slope_VH, None, None, None, None


def _reduced(
    logits_CV: Tensor, tokens_C: Tensor, temperature: float, distribution: bool
) -> tuple[Tensor, Tensor] | tuple[Tensor, Tensor, Tensor, Tensor]:
    """Log-probabilities and logsumexp; with `distribution` also entropy and the sum of squared probabilities."""
    logits_CV = logits_CV.to(torch.promote_types(logits_CV.dtype, torch.float32))
    if temperature != 1.0:
        logits_CV = logits_CV / temperature
    logsumexp_C = logits_CV.logsumexp(-1)
    logprobs_C = logits_CV.gather(-1, tokens_C[:, None])[:, 0] - logsumexp_C
    if not distribution:
        return logprobs_C, logsumexp_C
    logp_CV = logits_CV - logsumexp_C[:, None]
    probs_CV = logp_CV.exp()
    squares_C = probs_CV.square().sum(-1)
    return logprobs_C, logsumexp_C, -probs_CV.mul_(logp_CV).sum(-1), squares_C


def _is_plain(head: nn.Module) -> bool:
    """Whether it does nothing but multiply by its weight."""
    return type(head) is nn.Linear and head.bias is None and not _hooked(head)


def _hooked(head: nn.Module) -> bool:
    """Whether somebody listens to its calls, which would not be made."""
    return any((head._forward_hooks, head._forward_pre_hooks, head._backward_hooks, head._backward_pre_hooks))


def _in_chunks(
    head: nn.Module, hidden_NH: Tensor, tokens_N: Tensor, temperature: float, distribution: bool
) -> TokenStatistics:
    """The same through the module itself, whose logits are made again in the backward pass."""

    def statistics(hidden_CH: Tensor, tokens_C: Tensor) -> TokenStatistics:
        return token_statistics(head(hidden_CH), tokens_C, temperature, distribution=distribution)

    parts = [
        checkpoint(statistics, hidden_CH, tokens_C, use_reentrant=False)
        if torch.is_grad_enabled()
        else statistics(hidden_CH, tokens_C)
        for hidden_CH, tokens_C in zip(hidden_NH.split(TOKENS_AT_A_TIME), tokens_N.split(TOKENS_AT_A_TIME), strict=True)
    ]
    logprobs_N, entropy_N, squares_N = (
        None if column[0] is None else torch.cat(column)
        for column in zip(*[(part.logprobs, part.entropy, part.sum_squared_probs) for part in parts], strict=True)
    )
    assert logprobs_N is not None
    return TokenStatistics(logprobs_N, entropy_N, None if squares_N is None else squares_N.detach())
