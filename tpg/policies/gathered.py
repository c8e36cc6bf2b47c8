"""A whole copy of a policy whose weights are divided among devices."""

import copy
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from tpg.policies.base import Policy


class Gathered:
    """A plain copy that generates, made before the policy is divided; in `dtype`, or in the policy's own types."""

    def __init__(self, policy: Policy, dtype: torch.dtype | None = None) -> None:
        weights = {id(own): own.detach().to(dtype or own.dtype, copy=True) for own in policy.parameters()}
        self.policy = _copied(policy, weights)
        self._trained = {name for name, weight in policy.named_parameters() if weight.requires_grad}

    @torch.no_grad()
    def refresh(self, policy: Policy) -> None:
        """Copy what training has changed, a parameter at a time; every process calls it."""
        if self.policy.device != policy.device:
            self.policy.to(policy.device)
        for name, own, given in self._pairs(policy):
            if name in self._trained:
                own.copy_(whole(given))

    @torch.no_grad()
    def own_types(self, policy: Policy, *, keep: bool = True) -> Policy | None:
        """A copy on the CPU in the types in which the policy is held, such as one to save; None without `keep`.

        Every process calls it, a parameter at a time is gathered, and those that do not `keep` it hold no copy.
        """
        held: dict[int, Tensor] = {}
        for _, own, given in self._pairs(policy):
            tensor = whole(given)
            if keep:
                held[id(own)] = tensor.detach().to("cpu", copy=True)
        return _copied(self.policy, held).cpu() if keep else None

    def _pairs(self, policy: Policy) -> Iterator[tuple[str, nn.Parameter, nn.Parameter]]:
        given = dict(policy.named_parameters())
        for name, own in self.policy.named_parameters():
            yield name, own, given[name]


def whole(tensor: Any) -> Tensor:
    """The tensor itself, or all of one that is divided among processes, which all must ask for it."""
    gathered: Tensor = tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
    return gathered


def _copied(policy: Policy, weights: dict[int, Tensor]) -> Policy:
    """A deep copy with these for its parameters, by `id`: no other copy of them is made, and tied ones stay so."""
    memo: dict[int, Any] = {key: nn.Parameter(weight, requires_grad=False) for key, weight in weights.items()}
    return copy.deepcopy(policy, memo)
