"""The Lightning Trainer: hardware, how many devices share the work and how, precision, clipping."""

from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field, field_validator
from torch import nn

from tpg.component import component
from tpg.errors import UserError
from tpg.training.hardware import Precision, PrecisionName, fastest_precision, is_here

StrategyName = Literal["single", "ddp", "fsdp", "tensor_parallel", "fsdp_tp"]

REFUSED = {
    "fsdp1": "Lightning's FSDPStrategy breaks where responses are generated between passes; use trainer=fsdp, FSDP2",
    "deepspeed": "it needs CUDA and an engine of its own; use trainer=fsdp, which divides the same three things",
}


@component
class TrainerOptions:
    """The Lightning Trainer: hardware, how devices share the work, precision, clipping."""

    accelerator: Literal["auto", "cpu", "gpu", "cuda", "mps"] = "auto"
    strategy: StrategyName = "single"
    """ddp: every device holds the whole model. fsdp: weights, gradients and the optimizer's state are divided among
    devices (FSDP2). tensor_parallel: every layer is. fsdp_tp: both."""
    devices: int = Field(default=1, ge=1)
    """Of each node; on a CPU processes."""
    num_nodes: int = Field(default=1, ge=1)
    tensor_parallel: int | None = Field(default=None, ge=2)
    """Devices that share a layer; None: all for tensor_parallel, 2 for fsdp_tp."""
    timeout_s: float = Field(default=1800.0, gt=0)
    """How long one process waits for another before it gives up."""
    precision: PrecisionName = "32-true"
    """auto: bf16-mixed where that is measured to be faster for the policy's layers, else 32-true."""
    gradient_clip_val: float | None = Field(default=1.0, gt=0)
    """Largest norm of the gradient."""
    deterministic: bool = False
    detect_anomaly: bool = False

    @field_validator("strategy", mode="before")
    @classmethod
    def _is_supported(cls, given: Any) -> Any:
        if given in REFUSED:
            raise ValueError(REFUSED[given])
        return given

    @property
    def processes(self) -> int:
        """How many take part, a device each."""
        return self.devices * self.num_nodes

    @property
    def tensor_parallel_size(self) -> int:
        """Devices that share a layer; 1 where none do."""
        if self.strategy == "tensor_parallel":
            return self.tensor_parallel or self.processes
        if self.strategy == "fsdp_tp":
            return self.tensor_parallel or 2
        return 1

    @property
    def shards(self) -> bool:
        """Whether a device holds a part of the model only."""
        return self.strategy in ("fsdp", "tensor_parallel", "fsdp_tp")

    def check(self) -> None:
        """Raise `UserError` for hardware that is not here, or devices that cannot be divided as asked."""
        if self.accelerator != "auto" and not any(map(is_here, self._wanted())):
            raise UserError(f"trainer.accelerator={self.accelerator}: none here; use trainer=cpu or trainer=auto")
        self._check_division()
        found = torch.cuda.device_count()
        if self.device_type == "cuda" and self.devices > found:
            raise UserError(f"trainer.devices={self.devices}: this machine has {found}; use trainer.devices={found}")

    def _check_division(self) -> None:
        size, processes = self.tensor_parallel_size, self.processes
        if self.strategy == "single" and processes > 1:
            key = f"devices={self.devices}" if self.devices > 1 else f"num_nodes={self.num_nodes}"
            raise UserError(f"trainer.{key}: one is what trainer=auto|cpu|gpu uses; add trainer=ddp")
        if self.shards and processes == 1:
            raise UserError(f"trainer.devices=1: {self.strategy} divides a model among devices; use trainer=auto")
        if self.shards and self.precision == "16-mixed":
            raise UserError(f"trainer.precision=16-mixed: {self.strategy} scales no losses; use bf16-mixed or 32-true")
        if processes > 1 and self.device_type == "mps":
            raise UserError(f"trainer.strategy={self.strategy}: processes exchange nothing on MPS; use trainer=auto")
        if self.tensor_parallel is not None and size == 1:
            raise UserError(
                f"trainer.tensor_parallel={self.tensor_parallel}: {self.strategy} divides no layers; use"
                " trainer=tensor_parallel or trainer=fsdp_tp"
            )
        if self.strategy == "tensor_parallel" and size != processes:
            raise UserError(
                f"trainer.tensor_parallel={size}: trainer=tensor_parallel takes all {processes} devices; use"
                " trainer=fsdp_tp, which divides the rest by FSDP"
            )
        if processes % size or (self.strategy == "fsdp_tp" and processes == size):
            raise UserError(
                f"trainer.devices={self.devices}: {processes} processes are no multiple, from twice on, of"
                f" trainer.tensor_parallel={size}; use trainer.devices={2 * size}"
            )

    @property
    def device_type(self) -> str:
        """Of what Lightning will take: cpu, cuda or mps."""
        return next(filter(is_here, self._wanted()), "cpu")

    def _wanted(self) -> tuple[str, ...]:
        """Types of device that will do, the best first."""
        return ("cuda", "mps") if self.accelerator in ("auto", "gpu") else (self.accelerator,)

    def on_this_machine(self, policy: nn.Module, kept: Path | None = None) -> tuple["TrainerOptions", str]:
        """With the precision in which the policy is fastest here, and a note of it; nothing new if one is given.

        The file `kept` holds the choice from the first time on, so that a run goes on in the precision that it began
        in, on whatever machine.
        """
        if self.precision != "auto":
            return self, ""
        precision = Precision.read(kept) if kept is not None and kept.exists() else None
        if precision is None:
            precision = fastest_precision(policy, self.device_type)
            if kept is not None:
                precision.write(kept)
        return replace(self, precision=precision.name), precision.note

    def build(
        self, iterations: int, folder: Path | None, callbacks: list[Any], loggers: list[Any], plugins: list[Any]
    ) -> Any:
        """A Trainer whose epochs are iterations."""
        from lightning.pytorch import Trainer
        from lightning.pytorch.plugins.environments import LightningEnvironment

        if self.precision == "auto":
            raise ValueError("precision=auto is to be chosen first: on_this_machine(policy)")
        return Trainer(
            accelerator=self.accelerator,
            strategy=self._strategy(),
            devices=self.devices,
            num_nodes=self.num_nodes,
            precision=self.precision,
            gradient_clip_val=self.gradient_clip_val,
            deterministic=self.deterministic,
            detect_anomaly=self.detect_anomaly,
            max_epochs=iterations,
            reload_dataloaders_every_n_epochs=1,
            use_distributed_sampler=False,
            limit_val_batches=0,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            callbacks=callbacks,
            logger=loggers or False,
            # Where there are several processes, all have met before: Lightning is to ask neither SLURM nor torchrun.
            plugins=[*plugins, LightningEnvironment()],
            default_root_dir=folder,
        )

    def _strategy(self) -> Any:
        from lightning.pytorch.strategies import DDPStrategy

        from tpg.training.parallel.strategy import ShardedStrategy

        if self.strategy == "single":
            return "auto"
        if self.strategy == "ddp":
            # While a critic is trained alone the policy gets no gradient.
            return DDPStrategy(find_unused_parameters=True, broadcast_buffers=False, gradient_as_bucket_view=True)
        size = self.tensor_parallel_size
        return ShardedStrategy(data_parallel_size=self.processes // size, tensor_parallel_size=size)
