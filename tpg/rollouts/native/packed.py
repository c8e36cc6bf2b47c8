"""Linear layers whose weights lie as a CPU's matrix product reads them.

Torch arranges a bfloat16 weight anew in every product, which for the few rows of a decoding step costs as much as the
product itself: with 64 rows a sixth of its time is saved, with 8 rows half.
"""

import functools
import warnings
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn


class PackedLinear(nn.Module):
    """A bfloat16 linear layer on a CPU, its weight kept in a product's own order; without gradient."""

    def __init__(self, bias: nn.Parameter | None) -> None:
        super().__init__()
        self.bias = bias
        self._weight: Tensor | None = None

    def pack(self, weight: Tensor) -> None:
        """Take over a weight."""
        self._weight = torch.ops.mkldnn._reorder_linear_weight(weight.to(torch.bfloat16).contiguous())

    def forward(self, rows: Tensor) -> Tensor:
        """As `nn.Linear`."""
        product: Tensor = torch.ops.mkldnn._linear_pointwise(rows, self._weight, self.bias, "none", [], "")
        return product


def can_pack(module: Any) -> TypeGuard[nn.Linear]:
    """Whether it is a plain linear layer in bfloat16 on a CPU, and torch packs weights here."""
    if type(module) is not nn.Linear or type(module.weight) is not nn.Parameter:  # a sharded weight is none
        return False
    return module.weight.dtype == torch.bfloat16 and module.weight.device.type == "cpu" and _packs()


@functools.cache
def _packs() -> bool:
    """Whether torch's private functions do here what they are used for; tried once, against a plain layer."""
    if not torch.backends.mkldnn.is_available() or not torch.backends.mkldnn.enabled:
        return False
    generator = torch.Generator().manual_seed(0)
    shapes = (48, 32), (48,), (5, 1, 32)
    weight, bias, rows = (torch.randn(shape, generator=generator).bfloat16() for shape in shapes)
    try:
        with torch.no_grad():
            packed = PackedLinear(nn.Parameter(bias))
            packed.pack(weight)
            torch.testing.assert_close(packed(rows), nn.functional.linear(rows, weight, bias), rtol=0.05, atol=0.05)
    except (RuntimeError, TypeError, AttributeError, AssertionError) as error:
        warnings.warn(f"decoding does not pack weights: {str(error).splitlines()[0]}", stacklevel=2)
        return False
    return True
