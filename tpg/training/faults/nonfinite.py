"""Optimizer steps that are not made because their loss or gradient is not finite."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class SkippedStep:
    """An optimizer step that was not made: neither weights nor the optimizer's state have moved."""

    number: int
    """Of the iteration's steps, from 1."""
    first: bool
    """Whether it is the iteration's first that was skipped."""
    in_a_row: int
    """Steps skipped since the last one that was made, this one included."""
    loss: float
    norms: tuple[float, ...]
    """Of the gradients, a group of parameters each."""
    responses: Tensor
    """The indices of the iteration's trajectories that its minibatch holds."""

    @property
    def described(self) -> str:
        """What was not finite, in words."""
        if not math.isfinite(self.loss):
            return f"the loss is {self.loss}"
        return f"the gradient's norm is {next((norm for norm in self.norms if not math.isfinite(norm)), math.nan)}"


def forget_gradients(optimizer: torch.optim.Optimizer) -> None:
    """Leave nothing to step by: by gradients of zero AdamW would still decay weights and moments, without any not."""
    optimizer.zero_grad(set_to_none=True)


def finite(numbers: Sequence[float]) -> bool:
    """Whether all of them are."""
    return all(map(math.isfinite, numbers))


def scale_too_large(precision_plugin: Any, loss: float) -> bool:
    """Whether the gradient is not finite because the loss was scaled too far, which the scaler then puts right."""
    scaler = getattr(precision_plugin, "scaler", None)
    return scaler is not None and math.isfinite(loss) and scaler.get_scale() > 1.0
