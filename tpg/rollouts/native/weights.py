"""The weights that decode: the policy's own, or a copy in a shorter type."""

import copy
import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from tpg.policies.attention import Decoder, base_model
from tpg.policies.base import Policy
from tpg.rollouts.native.packed import PackedLinear, can_pack


class OwnWeights:
    """The policy's modules themselves: nothing to copy, nothing to keep up to date."""

    def __init__(self, policy: Policy) -> None:
        self.decoder = Decoder(policy.model)

    def update(self) -> None:
        """Nothing: they are the policy's."""


class CopiedWeights:
    """A copy, in a shorter type or to stay as it is while the policy is trained; adapters are merged in."""

    def __init__(self, policy: Policy, dtype: torch.dtype) -> None:
        source = base_model(policy.model)
        # Parameters of the copy are made in its type at once; a tied one stays one.
        copied = {id(tensor): _empty(tensor, dtype) for tensor in (*source.parameters(), *source.buffers())}
        model = copy.deepcopy(source, dict(copied))
        values: dict[int, Callable[[], Tensor]] = {id(copied[id(held)]): held.detach for held in source.parameters()}
        for name, module in source.named_modules():
            if hasattr(module, "get_delta_weight"):
                plain = model.get_submodule(name).base_layer
                plain.weight = _empty(module.base_layer.weight, dtype)  # its own, in case another layer is tied to it
                model.set_submodule(name, plain)
                values[id(plain.weight)] = functools.partial(_merged, module)
        self._written: list[tuple[Callable[[], Tensor], Callable[[Tensor], Any]]] = []
        for name, module in list(model.named_modules()):
            if can_pack(module):
                packed = PackedLinear(module.bias)
                model.set_submodule(name, packed)
                self._written.append((values[id(module.weight)], packed.pack))
        self._written += [(values[id(parameter)], parameter.copy_) for parameter in model.parameters()]
        self.decoder = Decoder(model)

    @torch.no_grad()
    def update(self) -> None:
        """Copy what training has changed."""
        for value, write in self._written:
            write(value())


def _merged(adapted: Any) -> Tensor:
    """A linear layer's weight with its adapters."""
    merged: Tensor = adapted.base_layer.weight + sum(map(adapted.get_delta_weight, adapted.active_adapters))
    return merged


def _empty(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    if isinstance(tensor, nn.Parameter):
        return nn.Parameter(torch.empty_like(tensor, dtype=dtype), requires_grad=False)
    return tensor.detach().clone()  # buffers, such as rotary frequencies, keep their precision
