"""Sketches of score functions: small vectors that keep the inner products of gradients in the output layer's weight.

The gradient of `log pi(o_t)` in that weight is the outer product of `(onehot(o_t) - pi_t) / temperature`, over the
vocabulary, with the hidden state `h_t`. Both sides are projected on fixed random signs, so that a forward pass is all
it takes. Dimensions: L sketched vocabulary, R sketched hidden state.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tpg.policies.base import Policy
from tpg.trajectories import Trajectories

AT_A_TIME = 16
"""Responses that are sketched together, a rectangle, where nothing else is said."""

TOKENS_AT_A_TIME = 1024
"""Bounds the memory for probabilities."""


@dataclass(frozen=True, eq=False)
class Projections:
    """What both sides of the outer product are multiplied by; None leaves a side as it is."""

    vocabulary_VL: Tensor | None
    hidden_HR: Tensor | None

    @staticmethod
    def random(policy: Policy, left: int, right: int, seed: int) -> Projections:
        """Signs over the square root of their number: inner products are right on average over `seed`."""
        vocabulary, hidden = output_layer(policy).weight.shape
        generator = torch.Generator().manual_seed(seed)
        sides = []
        for rows, columns in ((vocabulary, left), (hidden, right)):
            signs = torch.randint(0, 2, (rows, columns), generator=generator, dtype=torch.int8)
            sides.append((2.0 * signs - 1.0) / columns**0.5)
        return Projections(sides[0].to(policy.device), sides[1].to(policy.device))


@dataclass(frozen=True, eq=False)
class TokenSketches:
    """The sketch of every response token's score function, as its two factors; zero outside the response."""

    left_BTL: Tensor
    right_BTR: Tensor

    def sums(self, coefficients_BT: Tensor) -> Tensor:
        """For each response the sum over its tokens of coefficient times sketch, (B, L * R)."""
        weighted_BTL = coefficients_BT.to(self.left_BTL.dtype)[..., None] * self.left_BTL
        with _unrounded(self.left_BTL):
            return torch.einsum("btl,btr->blr", weighted_BTL, self.right_BTR).flatten(1)


@torch.no_grad()
def sketched(
    policy: Policy,
    trajectories: Trajectories,
    temperature: float,
    projections: Projections,
    responses: int | None,
    *,
    distribution: bool = False,
) -> tuple[TokenSketches, Trajectories]:
    """Sketches on the CPU, and the trajectories with `old_logprobs_BT`, so many responses at a time (None: 16).

    With `distribution`, also with entropy and sum of squared probabilities.
    """
    columns: dict[str, list[Tensor]] = {}
    width = trajectories.response_ids_BT.shape[1]
    for index in torch.arange(len(trajectories)).split(responses or AT_A_TIME):
        part = trajectories.select(index).trimmed().to(policy.device)
        with _captured(policy) as seen:
            statistics = policy.statistics(part, temperature, distribution=distribution, layout="padded")
        left_BTL, right_BTR = _factors(part, seen, temperature, projections)
        found = {"left": left_BTL, "right": right_BTR, "old_logprobs_BT": statistics.logprobs[..., None]}
        if distribution:
            found["entropy_BT"] = statistics.entropy[..., None]
            found["sum_squared_probs_BT"] = statistics.sum_squared_probs[..., None]
        for name, values_BTX in found.items():
            missing = width - values_BTX.shape[1]
            columns.setdefault(name, []).append(torch.nn.functional.pad(values_BTX.cpu(), (0, 0, 0, missing)))
    made = {name: torch.cat(parts) for name, parts in columns.items()}
    sketches = TokenSketches(made.pop("left"), made.pop("right"))
    return sketches, trajectories.replace(**{name: values_BT1[..., 0] for name, values_BT1 in made.items()})


def output_layer(policy: Policy) -> Any:
    """The layer that turns hidden states into logits."""
    return policy.model.get_output_embeddings()


def _unrounded(values: Tensor) -> torch.autocast:
    """No mixed precision, which would round the products that are to be compared."""
    return torch.autocast(values.device.type, enabled=False)


@contextlib.contextmanager
def _captured(policy: Policy) -> Iterator[dict[str, Tensor]]:
    """Holds the hidden states and the logits of the forward passes inside."""
    seen: dict[str, Tensor] = {}
    hooks = [
        output_layer(policy).register_forward_pre_hook(lambda _, inputs: seen.update(hidden=inputs[0])),
        policy.model.register_forward_hook(lambda _, inputs, output: seen.update(logits=output.logits)),
    ]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


def _factors(
    part: Trajectories, seen: dict[str, Tensor], temperature: float, projections: Projections
) -> tuple[Tensor, Tensor]:
    """Both sides of every response token's outer product, projected, in float32 or wider."""
    mask_BT = part.response_mask_BT
    tokens_N = part.response_ids_BT[mask_BT]
    logits_NV, hidden_NH = (seen[name][:, : mask_BT.shape[1]][mask_BT] for name in ("logits", "hidden"))
    parts = [
        _projected(logits, tokens, hidden, temperature, projections)
        for logits, tokens, hidden in zip(
            logits_NV.split(TOKENS_AT_A_TIME),
            tokens_N.split(TOKENS_AT_A_TIME),
            hidden_NH.split(TOKENS_AT_A_TIME),
            strict=True,
        )
    ]
    sides = []
    for values_N in (torch.cat([left for left, _ in parts]), torch.cat([right for _, right in parts])):
        values_BT = values_N.new_zeros(*mask_BT.shape, values_N.shape[-1])
        values_BT[mask_BT] = values_N
        sides.append(values_BT)
    return sides[0], sides[1]


def _projected(
    logits_NV: Tensor, tokens_N: Tensor, hidden_NH: Tensor, temperature: float, projections: Projections
) -> tuple[Tensor, Tensor]:
    with _unrounded(logits_NV):
        logits_NV, hidden_NH = (
            values.float() if values.dtype in (torch.bfloat16, torch.float16) else values
            for values in (logits_NV, hidden_NH)
        )
        probs_NV = (logits_NV / temperature).softmax(-1)
        if projections.vocabulary_VL is None:
            left_NL = torch.nn.functional.one_hot(tokens_N, probs_NV.shape[-1]) - probs_NV
        else:
            vocabulary_VL = projections.vocabulary_VL.to(probs_NV.dtype)
            left_NL = vocabulary_VL[tokens_N] - probs_NV @ vocabulary_VL
        hidden_HR = projections.hidden_HR
        right_NR = hidden_NH if hidden_HR is None else hidden_NH @ hidden_HR.to(hidden_NH.dtype)
        return left_NL / temperature, right_NR
