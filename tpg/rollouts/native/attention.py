"""What a layer attends to when prompts are read, and when every lane is fed its next token."""

import functools
import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from tpg.rollouts.native.cache import Context, Own, Shared


class Reading:
    """Prefixes end to end in one row, each attending to itself alone; what it computes is kept as contexts."""

    def __init__(self, lengths: Sequence[int]) -> None:
        self.lengths = list(lengths)
        self.contexts = [Context() for _ in lengths]

    def __call__(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        """See `tpg.policies.attention.Attention`."""
        attended = []
        parts = (tensor.split(self.lengths, dim=2) for tensor in (query, key, value))
        for context, q, k, v in zip(self.contexts, *parts, strict=True):
            context.keys.append(k[0])
            context.values.append(v[0])
            gqa = q.shape[1] != k.shape[1]
            attended.append(scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale, enable_gqa=gqa))
        return torch.cat(attended, dim=2).transpose(1, 2)


class Feeding:
    """One token a lane, attending to what the lane shares with others and to its own tokens."""

    def __init__(self, shared: Sequence[Shared], own: Own) -> None:
        self.shared = shared
        self.own = own

    def __call__(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        """See `tpg.policies.attention.Attention`."""
        R, heads, _, D = query.shape
        kv_heads = key.shape[1]
        # Before the product, which would not fit into float16 otherwise, by a power of two, which rounds nothing.
        power = 2.0 ** math.floor(math.log2(scale))
        query_RHrD = (query * power).reshape(R, kv_heads, heads // kv_heads, D).to(value.dtype)
        self.own.write(layer, key.to(value.dtype), value)
        places: list[Shared | Own] = [*self.shared, self.own]
        scores = [place.scores(layer, query_RHrD) for place in places]
        exact = torch.promote_types(value.dtype, torch.float32)
        probs = (torch.cat(scores, dim=-1).to(exact) * (scale / power)).softmax(-1).to(value.dtype)
        mixed = [
            place.mixed(layer, part)
            for place, part in zip(places, probs.split([part.shape[-1] for part in scores], dim=-1), strict=True)
        ]
        return functools.reduce(torch.add, mixed).reshape(R, 1, heads, D)
