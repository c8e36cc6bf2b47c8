"""The weights that decode: the policy's own, or a copy in a shorter type."""

import copy

import torch
from torch import Tensor, nn

from tpg.policies.attention import Decoder, base_model
from tpg.policies.base import Policy


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
        self._adapted = []
        for name, module in source.named_modules():
            if hasattr(module, "get_delta_weight"):
                plain = model.get_submodule(name).base_layer
                plain.weight = _empty(module.base_layer.weight, dtype)  # its own, in case another layer is tied to it
                model.set_submodule(name, plain)
                self._adapted.append((module, plain.weight))
        used = {id(parameter) for parameter in model.parameters()} - {id(weight) for _, weight in self._adapted}
        self._plain = [(tensor, copied[id(tensor)]) for tensor in source.parameters() if id(copied[id(tensor)]) in used]
        self.decoder = Decoder(model)

    @torch.no_grad()
    def update(self) -> None:
        """Copy what training has changed."""
        for tensor, copied in self._plain:
            copied.copy_(tensor)
        for module, copied in self._adapted:
            copied.copy_(module.base_layer.weight + sum(map(module.get_delta_weight, module.active_adapters)))


def _empty(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    if isinstance(tensor, nn.Parameter):
        return nn.Parameter(torch.empty_like(tensor, dtype=dtype), requires_grad=False)
    return tensor.detach().clone()  # buffers, such as rotary frequencies, keep their precision
