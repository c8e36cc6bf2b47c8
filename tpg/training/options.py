"""The options of a run that are no method: how the update is split, the optimizer, the hardware, what is kept."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import Field, field_validator
from torch import nn

from tpg.component import component
from tpg.errors import UserError
from tpg.estimators.base import Estimator


@component
class Update:
    """How an iteration's responses are divided among optimizer steps and memory."""

    epochs: int = Field(default=1, ge=1)
    """Passes over the responses."""
    responses_per_minibatch: int | None = Field(default=None, ge=1)
    """Responses an optimizer step; None: all of them."""
    responses_per_microbatch: int = Field(default=16, ge=1)
    """Responses a forward and backward pass; bounds memory and changes nothing else."""

    def steps(self, responses: int) -> int:
        """Optimizer steps an iteration."""
        return self.epochs * math.ceil(responses / (self.responses_per_minibatch or responses))


@component
class Optimizer:
    """AdamW with warm-up and a schedule. (arXiv 1711.05101.)"""

    lr: float = Field(default=1e-6, gt=0)
    betas: tuple[float, float] = (0.9, 0.99)
    eps: float = Field(default=1e-8, gt=0)
    weight_decay: float = Field(default=0.0, ge=0)
    warmup_steps: int = Field(default=0, ge=0)
    """Optimizer steps over which the learning rate rises linearly."""
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    """How it falls to zero afterwards, by the last step of the run."""

    def build(
        self, module: nn.Module, total_steps: int, others: Sequence[tuple[nn.Module, float]] = ()
    ) -> tuple[torch.optim.Optimizer, Any]:
        """The optimizer over what is trainable, and its per-step schedule; `others` bring their own learning rate."""
        groups = [
            {"params": [parameter for parameter in part.parameters() if parameter.requires_grad], "lr": lr}
            for part, lr in [(module, self.lr), *others]
        ]
        optimizer = torch.optim.AdamW(groups, betas=self.betas, eps=self.eps, weight_decay=self.weight_decay)
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


@component
class TrainerOptions:
    """The Lightning Trainer: hardware, precision, clipping."""

    accelerator: Literal["auto", "cpu", "gpu", "cuda", "mps"] = "auto"
    devices: Literal[1] = 1
    precision: Literal["32-true", "bf16-mixed", "16-mixed", "bf16-true"] = "32-true"
    gradient_clip_val: float | None = Field(default=1.0, gt=0)
    """Largest norm of the gradient."""
    deterministic: bool = False
    detect_anomaly: bool = False

    def check(self) -> None:
        """Raise `UserError` for an accelerator that this machine lacks."""
        cuda, mps = torch.cuda.is_available(), torch.backends.mps.is_available()
        present = {"gpu": cuda or mps, "cuda": cuda, "mps": mps}
        if not present.get(self.accelerator, True):
            raise UserError(f"trainer.accelerator={self.accelerator}: none here; use trainer=cpu or trainer=auto")

    def build(
        self, iterations: int, folder: Path | None, callbacks: list[Any], loggers: list[Any], plugins: list[Any]
    ) -> Any:
        """A Trainer whose epochs are iterations."""
        from lightning.pytorch import Trainer

        return Trainer(
            accelerator=self.accelerator,
            devices=self.devices,
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
            plugins=plugins,
            default_root_dir=folder,
        )


@component
class Evaluation:
    """How the policy is tried on held-out prompts."""

    every: int = Field(default=10, ge=0)
    """Iterations between two evaluations, the first before any update and one after the last; 0: never."""
    prompts: int | None = Field(default=None, ge=1)
    """At most so many held-out prompts; None: all."""
    responses_per_prompt: int = Field(default=1, ge=1)
    """k of pass@k and maj@k."""
    temperature: float | None = Field(default=None, ge=0)
    """None: as in training. 0: greedy."""
    success_reward: float = 1.0
    """A response whose reward reaches this counts as solved."""


@component
class Checkpointing:
    """When the state that a run continues from is written."""

    every: int = Field(default=10, ge=1)
    """Iterations between two checkpoints; the last iteration always leaves one."""
    keep_last: int = Field(default=1, ge=1)
    recorded_responses: int = Field(default=64, ge=0)
    """How many responses, by whole prompts, leave a record of their tokens then and at the first iteration; 0: none."""


@component
class WarmStart:
    """Supervised steps on the task's demonstrations before the first iteration; 0 steps: none."""

    steps: int = Field(default=0, ge=0)
    examples_per_step: int = Field(default=64, ge=1)
    lr: float = Field(default=1e-3, gt=0)


@component
class Audit:
    """What `tpg.audit` tries a config on: small worlds where everything is counted, or the policy itself."""

    on: Literal["worlds", "policy"] = "worlds"
    estimators: str | list[str] | dict[str, Estimator] | None = None
    """Names of estimator options to compare, or all that the config admits, or estimators by names of one's own.

    None: the config's.
    """
    vary: Annotated[dict[str, Annotated[list[Any], Field(min_length=1)]], Field(max_length=1)] | None = None
    """One of the keys below and the values that it takes in turn."""
    responses_per_prompt: int | None = Field(default=None, ge=1)
    """In the worlds; None: the fewest that the estimator takes."""
    seed: int = Field(default=0, ge=0, lt=2**32)
    worlds: int = Field(default=20, ge=1)
    """How many are drawn."""
    vocabulary: int = Field(default=3, ge=2, le=8)
    horizon: int = Field(default=3, ge=1, le=8)
    """Most tokens of a response."""
    end: bool = False
    """Whether the last token of the vocabulary ends a response, so that lengths vary."""
    prompts: int = Field(default=1, ge=1)
    reward: Literal["dense", "key", "first", "last", "terminal_binary"] = "dense"
    """Which hidden tokens the reward comes from: all, those at one position, the first, the last; or 0/1 in the end."""
    success_rate: float = Field(default=1 / 3, gt=0, lt=1)
    """Probability of reward 1 where rewards are terminal and binary, as nearly as the responses allow."""
    discount: float = Field(default=1.0, gt=0, le=1)
    """The true objective's: token t's hidden reward counts `discount^(t-1)`."""
    reward_scales: list[Annotated[float, Field(gt=0)]] = Field(default=[1.0], min_length=1)
    """Of the prompts in turn."""
    off_policy: float = Field(default=0.0, ge=0)
    """Standard deviation of what has been added to the policy's logits since the rollout."""
    mismatch: float = Field(default=0.0, ge=0)
    """Standard deviation of what the engine's logits are off by."""
    reference_distance: float = Field(default=0.5, ge=0)
    critic_error: float = Field(default=0.5, ge=0)
    """Standard deviation of the critic's error at each prefix."""
    limit: int = Field(default=50_000, ge=1)
    """Batches that are enumerated at most; where there are more, `samples` are drawn."""
    samples: int = Field(default=20_000, ge=100)
    batches: int = Field(default=16, ge=4)
    """Independent batches that are generated on the policy."""

    @field_validator("estimators")
    @classmethod
    def _is_all_or_a_list(cls, estimators: Any) -> Any:
        if isinstance(estimators, str) and estimators != "all":
            raise ValueError(f"should be a list, e.g. [{estimators}], or all")
        return estimators
