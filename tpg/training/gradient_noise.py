"""How much of a gradient is signal: micro-batches of one optimizer step, compared."""

import math
import sys
from dataclasses import dataclass, field
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from tpg.training.minibatches import MicroBatch
from tpg.training.module import IterationCallback, TrajectoryPolicyGradient


@dataclass(frozen=True)
class Noise:
    """A gradient's squared length and the part of it that noise has, tr(S) / N for N responses of covariance S."""

    squared_norm: float
    noise: float
    responses: float

    @property
    def signal(self) -> float:
        """The squared length of the true gradient; 0 where noise explains all there is."""
        return max(self.squared_norm - self.noise, 0.0)

    @property
    def snr(self) -> float:
        """`max(|g|^2 - tr(S)/N, 0) / (tr(S)/N)`. The plain `|g|^2` counts the noise as signal."""
        if self.noise <= 0:
            return math.inf if self.signal else 0.0
        return self.signal / self.noise

    @property
    def noise_scale(self) -> float:
        """Responses at which noise and signal are equal, tr(S) / |true g|^2; NaN without a signal. (1812.06162.)"""
        return self.responses * self.noise / self.signal if self.signal else math.nan

    @property
    def step_factor(self) -> float:
        """`SNR / (1 + SNR)`, the learning rate's factor. (OBLR-PO, arXiv 2511.23310.)"""
        return self.signal / self.squared_norm if self.squared_norm else 0.0


@dataclass
class MicroBatchSpread:
    """Running sums over the micro-batches of one optimizer step.

    A micro-batch of n of the N responses adds c to the gradient g. The covariance S of a response's gradient has
    `tr(S)/N = (sum of |c|^2 N/n - |g|^2) / (M - 1)` over M micro-batches, without bias where responses are drawn alike.
    """

    total: Tensor | float = 0.0
    weighted_squares: float = 0.0
    responses: int = 0
    parts: int = 0

    def add(self, gradient: Tensor, responses: int) -> None:
        """Take in a micro-batch of so many responses, after which the gradient summed so far is `gradient`."""
        self.weighted_squares += float((gradient - self.total).square().sum()) / responses
        self.total = gradient
        self.responses += responses
        self.parts += 1

    @property
    def noise(self) -> Noise | None:
        """None while there is nothing to compare."""
        if self.parts < 2:
            return None
        squared_norm = float(torch.as_tensor(self.total).square().sum())
        noise = (self.responses * self.weighted_squares - squared_norm) / (self.parts - 1)
        return Noise(squared_norm, max(noise, 0.0), self.responses)


@dataclass
class Coordinates:
    """A fixed random choice of a gradient's coordinates, whose differences stand for the whole gradient's."""

    count: int
    indices: list[Tensor | None] = field(default_factory=list)
    """Of each trainable parameter; None stands for all."""

    def of_gradient(self, parameters: list[torch.nn.Parameter]) -> Tensor:
        """The gradient there, in float32 or wider."""
        if not self.indices:
            self._choose(parameters)
        chosen = []
        for parameter, index in zip(parameters, self.indices, strict=True):
            values = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            values = values.detach().flatten()
            values = values.clone() if index is None else values[index]
            chosen.append(values.float() if values.dtype in (torch.bfloat16, torch.float16) else values)
        return torch.cat(chosen)

    def _choose(self, parameters: list[torch.nn.Parameter]) -> None:
        ends = torch.tensor([parameter.numel() for parameter in parameters]).cumsum(0)
        total = int(ends[-1])
        if total <= self.count:
            self.indices = [None] * len(parameters)
            return
        generator = torch.Generator().manual_seed(0)
        drawn = torch.randint(total, (self.count,), generator=generator).unique()
        parts = torch.tensor_split(drawn, torch.searchsorted(drawn, ends[:-1]))
        starts = [0, *ends[:-1].tolist()]
        self.indices = [
            (part - start).to(parameter.device)
            for part, start, parameter in zip(parts, starts, parameters, strict=True)
        ]


class GradientNoise(IterationCallback):
    """Logs `gradient/snr` and `gradient/noise_scale`; with `scales_step` steps by `lr * SNR / (1 + SNR)`.

    Everything comes from the micro-batches of the step in hand, so nothing is carried from one step to the next.
    """

    compares_micro_batches = True

    def __init__(self, coordinates: int = 1_000_000, scales_step: bool = False) -> None:
        if not isinstance(coordinates, int) or coordinates < 1:
            raise ValueError(f"coordinates={coordinates}: should be an integer of at least 1")
        if not isinstance(scales_step, bool):
            raise ValueError(f"scales_step={scales_step}: should be true or false")
        self.coordinates = Coordinates(coordinates)
        self.scales_step = scales_step
        self._spread = MicroBatchSpread()
        self._noises: list[Noise] = []
        self._responses = 0
        self._warned = False
        self._scheduled: float | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Be called after every step."""
        for optimizer in trainer.optimizers:
            optimizer.register_step_post_hook(self._restore)

    def on_iteration_start(self, module: TrajectoryPolicyGradient, iteration: int) -> None:
        """Forget the last iteration's steps."""
        self._noises = []
        self._spread = MicroBatchSpread()

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: MicroBatch, batch_idx: int
    ) -> None:
        """Note how many responses the micro-batch holds."""
        self._responses = 0 if batch.trajectories is None else len(batch.trajectories)

    def on_after_backward(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take in what the micro-batch added to the gradient."""
        assert isinstance(pl_module, TrajectoryPolicyGradient)
        if self._responses and trainer.world_size == 1 and not pl_module.critic_alone:
            parameters = [parameter for parameter in pl_module.policy.parameters() if parameter.requires_grad]
            self._spread.add(self.coordinates.of_gradient(parameters), self._responses)

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        """Close the step: note its noise, and scale the learning rate until the optimizer has made it."""
        noise, responses = self._spread.noise, self._spread.responses
        self._spread = MicroBatchSpread()
        self._scheduled = None  # it stands after a step that a gradient scaler skipped; the schedule has set the rate
        if noise is None:
            if responses > 1 or trainer.world_size > 1:
                self._warn()
        elif math.isfinite(noise.squared_norm + noise.noise):
            self._noises.append(noise)
            if self.scales_step:
                self._scale(optimizer, noise.step_factor)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Add the row's numbers, before it is written: ratios of means over the iteration's steps."""
        assert isinstance(pl_module, TrajectoryPolicyGradient)
        steps = len(self._noises)
        if not steps:
            return
        mean = Noise(
            sum(noise.squared_norm for noise in self._noises) / steps,
            sum(noise.noise for noise in self._noises) / steps,
            sum(noise.responses for noise in self._noises) / steps,
        )
        pl_module.metrics |= {"gradient/snr": mean.snr, "gradient/noise_scale": mean.noise_scale}
        if self.scales_step:
            pl_module.metrics["gradient/step_factor"] = sum(noise.step_factor for noise in self._noises) / steps

    def _scale(self, optimizer: torch.optim.Optimizer, factor: float) -> None:
        """Scale the policy's learning rate, which the first group holds, for the step that follows."""
        self._scheduled = optimizer.param_groups[0]["lr"]
        optimizer.param_groups[0]["lr"] *= factor

    def _restore(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        if self._scheduled is not None:
            optimizer.param_groups[0]["lr"] = self._scheduled
            self._scheduled = None

    def _warn(self) -> None:
        if not self._warned:
            self._warned = True
            print(
                "warning: callbacks.gradient_noise: there is nothing to compare in steps of one micro-batch (lower"
                " update.responses_per_microbatch) or on several devices; nothing is logged or scaled there",
                file=sys.stderr,
            )
