"""Keys and values while decoding: those that several lanes share, and each lane's own.

A lane is a row of the batch that is being decoded. It looks back at a prompt, which all the prompt's lanes share; at
the first tokens of a response, where it continues one; and at the tokens that it has been fed itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

BLOCK = 64
"""Tokens by which a lane's own cache grows, at least."""


@dataclass(eq=False)
class Context:
    """The keys and values of successive tokens, (key-value heads, tokens, D) for each layer."""

    keys: list[Tensor] = field(default_factory=list)
    values: list[Tensor] = field(default_factory=list)

    @property
    def tokens(self) -> int:
        """How many."""
        return self.keys[0].shape[1] if self.keys else 0

    def separate(self) -> None:
        """Hold nothing but these tokens: no more a view of what held others beside them."""
        self.keys = [tensor.clone() for tensor in self.keys]
        self.values = [tensor.clone() for tensor in self.values]


class Shared:
    """Contexts side by side, each looked at by all of its lanes in one product."""

    def __init__(self) -> None:
        self.contexts: list[Context] = []
        self._keys: list[Tensor] = []
        self._values: list[Tensor] = []
        self._places_R: Tensor | None = None
        self._lanes_of_a_context = 0
        self._mask_R11S: Tensor | None = None

    def arrange(self, contexts: Sequence[Context], seen: Sequence[int]) -> None:
        """Each lane's context, and how many of its tokens the lane looks at. Called whenever lanes come or go."""
        active = list(dict.fromkeys(contexts))
        if set(active) - set(self.contexts) or 2 * len(active) <= len(self.contexts):
            self._stack(active)
        number = {context: u for u, context in enumerate(self.contexts)}
        taken = [0] * len(self.contexts)
        places = []
        for context in contexts:
            places.append((number[context], taken[number[context]]))
            taken[number[context]] += 1
        most = max(taken)
        device = self._keys[0].device
        flat = [u * most + m for u, m in places]
        in_order = flat == list(range(len(self.contexts) * most))
        self._places_R = None if in_order else torch.tensor(flat, device=device)
        self._lanes_of_a_context = most
        width = self._keys[0].shape[2]
        self._mask_R11S = _hidden_beyond(seen, width, self._keys[0])

    def _stack(self, contexts: list[Context]) -> None:
        """One padded tensor a layer, of which the contexts become views: each is held once."""
        width = max(context.tokens for context in contexts)
        self._keys, self._values = (
            [_stacked([getattr(context, kind)[layer] for context in contexts], width) for layer in range(layers)]
            for kind, layers in (("keys", len(contexts[0].keys)), ("values", len(contexts[0].values)))
        )
        for u, context in enumerate(contexts):
            tokens = context.tokens
            context.keys = [keys[u, :, :tokens] for keys in self._keys]
            context.values = [values[u, :, :tokens] for values in self._values]
        self.contexts = contexts

    def scores(self, layer: int, query_RHrD: Tensor) -> Tensor:
        """Each lane's products with its context's keys, (R, H, r, S); minus infinity where it does not look."""
        keys_UHSD = self._keys[layer]
        together_UHmD = self._by_context(query_RHrD)
        scores_RHrS = self._by_lane(together_UHmD @ keys_UHSD.transpose(-1, -2), query_RHrD.shape[2])
        return scores_RHrS if self._mask_R11S is None else scores_RHrS + self._mask_R11S

    def mixed(self, layer: int, probs_RHrS: Tensor) -> Tensor:
        """The values by these weights, (R, H, r, D)."""
        return self._by_lane(self._by_context(probs_RHrS) @ self._values[layer], probs_RHrS.shape[2])

    def _by_context(self, rows_RHrX: Tensor) -> Tensor:
        """(U, H, lanes of a context x r, X); places without a lane are zero."""
        U, M = len(self.contexts), self._lanes_of_a_context
        H, r, X = rows_RHrX.shape[1:]
        if self._places_R is not None:
            spread = rows_RHrX.new_zeros(U * M, H, r, X)
            rows_RHrX = spread.index_copy_(0, self._places_R, rows_RHrX)
        return rows_RHrX.view(U, M, H, r, X).transpose(1, 2).reshape(U, H, M * r, X)

    def _by_lane(self, together_UHmX: Tensor, r: int) -> Tensor:
        U, H, m, X = together_UHmX.shape
        rows = together_UHmX.view(U, H, m // r, r, X).transpose(1, 2).reshape(-1, H, r, X)
        return rows if self._places_R is None else rows.index_select(0, self._places_R)


class Own:
    """What each lane has been fed, in preallocated tensors; a lane that ends gives its place to the last one."""

    def __init__(self, lanes: int, most_tokens: int) -> None:
        self.lengths: list[int] = []
        self._lanes = lanes
        self._most_tokens = most_tokens
        self._keys: list[Tensor] = []
        self._values: list[Tensor] = []
        self._rows_R = torch.zeros(0, dtype=torch.long)
        self._lengths_R = torch.zeros(0, dtype=torch.long)
        self._level = False
        self._mask_R11W: Tensor | None = None

    def admit(self, count: int) -> None:
        """So many lanes more, empty."""
        self.lengths += [0] * count

    def remove(self, lane: int) -> None:
        """End a lane: the last one moves to its place."""
        last = len(self.lengths) - 1
        if lane != last:
            for tensor in (*self._keys, *self._values):
                tensor[lane, :, : self.lengths[last]] = tensor[last, :, : self.lengths[last]]
            self.lengths[lane] = self.lengths[last]
        self.lengths.pop()

    def copy(self, lane: int) -> Context:
        """What a lane has been fed."""
        tokens = self.lengths[lane]
        return Context(
            [keys[lane, :, :tokens].clone() for keys in self._keys],
            [values[lane, :, :tokens].clone() for values in self._values],
        )

    def feed(self, device: torch.device) -> None:
        """One more token for every lane: their places, before the first layer writes into them."""
        self._rows_R = torch.arange(len(self.lengths), device=device)
        self._lengths_R = torch.tensor(self.lengths, device=device)
        self.lengths = [length + 1 for length in self.lengths]
        longest = max(self.lengths)
        self._level = min(self.lengths) == longest
        self._mask_R11W = None
        if self._keys and longest > self._keys[0].shape[2]:
            self._grow(longest)

    def _grow(self, tokens: int) -> None:
        width = min(self._most_tokens, max(tokens, 2 * self._keys[0].shape[2]))
        for tensors in (self._keys, self._values):
            for layer, tensor in enumerate(tensors):
                wider = tensor.new_zeros(*tensor.shape[:2], width, tensor.shape[3])
                wider[:, :, : tensor.shape[2]] = tensor
                tensors[layer] = wider

    def write(self, layer: int, key_RH1D: Tensor, value_RH1D: Tensor) -> None:
        """The fed tokens' key and value."""
        if layer == len(self._keys):
            width = min(self._most_tokens, max(BLOCK, *self.lengths))
            for tensors, given in ((self._keys, key_RH1D), (self._values, value_RH1D)):
                # Zeros, not whatever memory holds: what is masked still enters products.
                tensors.append(given.new_zeros(self._lanes, given.shape[1], width, given.shape[3]))
        for tensor, given in ((self._keys[layer], key_RH1D), (self._values[layer], value_RH1D)):
            if self._level:
                tensor[: len(self.lengths), :, self.lengths[0] - 1] = given[:, :, 0]
            else:
                tensor[self._rows_R, :, self._lengths_R] = given[:, :, 0]

    def scores(self, layer: int, query_RHrD: Tensor) -> Tensor:
        """Each lane's products with its own keys, (R, H, r, W); minus infinity beyond its length."""
        # Of all places, filled or not: a product with some of them would copy those first, which takes longer.
        keys_RHWD = self._keys[layer][: len(self.lengths)]
        scores_RHrW = query_RHrD @ keys_RHWD.transpose(-1, -2)
        if self._mask_R11W is None:
            self._mask_R11W = _hidden_beyond(self.lengths, keys_RHWD.shape[2], scores_RHrW)
        return scores_RHrW if self._mask_R11W is None else scores_RHrW + self._mask_R11W

    def mixed(self, layer: int, probs_RHrW: Tensor) -> Tensor:
        """The own values by these weights, (R, H, r, D)."""
        return probs_RHrW @ self._values[layer][: len(self.lengths)]


def _stacked(tensors: Sequence[Tensor], width: int) -> Tensor:
    together = tensors[0].new_zeros(len(tensors), tensors[0].shape[0], width, tensors[0].shape[2])
    for u, tensor in enumerate(tensors):
        together[u, :, : tensor.shape[1]] = tensor
    return together


def _hidden_beyond(lengths: Sequence[int], width: int, like: Tensor) -> Tensor | None:
    """What is added to scores, (R, 1, 1, width): minus infinity beyond each row's length; None if none reaches less."""
    if min(lengths) >= width:
        return None
    beyond = torch.arange(width) >= torch.tensor(lengths)[:, None]
    mask = torch.zeros(len(lengths), width).masked_fill(beyond, -torch.inf)
    return mask[:, None, None].to(device=like.device, dtype=like.dtype)
