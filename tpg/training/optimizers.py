"""The optimizers, with warm-up and a schedule."""

import importlib.util
import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from tpg.component import component
from tpg.errors import UserError

Groups = list[dict[str, Any]]


@component
class OptimizerOptions(ABC):
    """A learning rate that rises, stays or falls, and the betas of Adam's kin."""

    lr: float = Field(default=1e-6, gt=0)
    betas: tuple[float, float] = (0.9, 0.99)
    eps: float = Field(default=1e-8, gt=0)
    weight_decay: float = Field(default=0.0, ge=0)
    warmup_steps: int = Field(default=0, ge=0)
    """Optimizer steps over which the learning rate rises linearly."""
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    """How it falls to zero afterwards, by the last step of the run."""

    def check(self) -> None:  # noqa: B027
        """Raise `UserError` for what this machine lacks. Loads nothing."""

    @abstractmethod
    def over(self, groups: Groups) -> torch.optim.Optimizer:
        """The optimizer over groups of parameters, each with its own learning rate."""

    def build(
        self, module: nn.Module, total_steps: int, others: Sequence[tuple[nn.Module, float]] = ()
    ) -> tuple[torch.optim.Optimizer, Any]:
        """The optimizer over what is trainable, and its per-step schedule; `others` bring their own learning rate."""
        optimizer = self.over(
            [
                {"params": [parameter for parameter in part.parameters() if parameter.requires_grad], "lr": lr}
                for part, lr in [(module, self.lr), *others]
            ]
        )
        return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: self.factor(step, total_steps))

    def factor(self, step: int, total_steps: int) -> float:
        """The learning rate's factor at optimizer step 0, 1, ..."""
        if step < self.warmup_steps:
            return (step + 1) / self.warmup_steps
        done = min(1.0, (step - self.warmup_steps) / max(1, total_steps - self.warmup_steps))
        if self.schedule == "linear":
            return 1.0 - done
        if self.schedule == "cosine":
            return 0.5 * (1.0 + math.cos(math.pi * done))
        return 1.0


class AdamW(torch.optim.AdamW):
    """torch's, for weights of which some are divided among processes and others not, or otherwise."""

    def step(self, closure: Any = None) -> Any:
        """Weights that are divided alike step together."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        groups = self.param_groups
        self.param_groups = [{**group, "params": params} for group in groups for params in _alike(group["params"])]
        # Torch runs hooks around `step` of each class that it has made an optimizer of: here they are run already.
        plain: Any = torch.optim.AdamW.step
        plain = plain.__wrapped__ if getattr(plain, "hooked", False) else plain
        try:
            plain(self)
        finally:
            self.param_groups = groups
        return loss


def _alike(parameters: list[Tensor]) -> list[list[Tensor]]:
    """In parts that one kernel takes: plain ones, and those of one mesh."""
    parts: dict[Any, list[Tensor]] = {}
    for parameter in parameters:
        mesh = parameter.device_mesh if isinstance(parameter, DTensor) else None
        parts.setdefault(mesh, []).append(parameter)
    return list(parts.values())


@component
class Optimizer(OptimizerOptions):
    """AdamW. (arXiv 1711.05101.)"""

    fused: bool | None = None
    """One kernel for the whole step; None: where every weight lies on a CPU or a CUDA device."""

    def over(self, groups: Groups) -> torch.optim.Optimizer:
        """AdamW, fused or as torch does it by default."""
        devices = {parameter.device.type for group in groups for parameter in group["params"]}
        fused = devices <= {"cpu", "cuda"} if self.fused is None else self.fused
        if fused and not devices <= {"cpu", "cuda"}:
            raise UserError(f"optimizer.fused=true: there is no fused step on {', '.join(sorted(devices))}; use false")
        made = AdamW(groups, betas=self.betas, eps=self.eps, weight_decay=self.weight_decay, fused=fused)
        # Else Lightning would leave it to the step to undo the scaling of losses, and refuse to clip.
        made._step_supports_amp_scaling = False
        return made


@component
class AdamW8bit(OptimizerOptions):
    """AdamW whose moments are kept in 8 bits, blockwise, by bitsandbytes on CUDA. (arXiv 2110.02861.)"""

    paged: bool = False
    """Whether the moments move to the computer's memory where the GPU's is full. (arXiv 2305.14314.)"""

    def check(self) -> None:
        """Look for the package and for CUDA."""
        if not torch.cuda.is_available():
            raise UserError("optimizer: 8-bit AdamW needs a CUDA device, and there is none; use optimizer=adamw")
        if importlib.util.find_spec("bitsandbytes") is None:
            raise UserError("optimizer: 8-bit AdamW needs bitsandbytes (pip install bitsandbytes); or optimizer=adamw")

    def over(self, groups: Groups) -> torch.optim.Optimizer:
        """The optimizer; tensors of fewer than 4096 numbers keep their moments in 32 bits."""
        import bitsandbytes

        if any(isinstance(parameter, DTensor) for group in groups for parameter in group["params"]):
            raise UserError(
                "optimizer: 8-bit AdamW steps no weights that are divided; use optimizer=adamw, or trainer=ddp"
            )
        kind = bitsandbytes.optim.PagedAdamW8bit if self.paged else bitsandbytes.optim.AdamW8bit
        return kind(groups, lr=self.lr, betas=self.betas, eps=self.eps, weight_decay=self.weight_decay)
