"""The options of a run that are no method: how the update is split, the optimizer, the hardware, what is kept."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import Field, field_validator
from torch import nn

from tpg.component import component
from tpg.errors import UserError
from tpg.estimators.base import Estimator
from tpg.training.hardware import Precision, PrecisionName, fastest_precision
from tpg.training.optimizers import Optimizer as Optimizer


@component
class Update:
    """How an iteration's responses are divided among optimizer steps and memory."""

    epochs: int = Field(default=1, ge=1)
    """Passes over the responses."""
    responses_per_minibatch: int | None = Field(default=None, ge=1)
    """Responses an optimizer step; None: all of them."""
    tokens_per_microbatch: int | None = Field(default=2048, ge=1)
    """Tokens that a forward and backward pass computes: each prompt once and its responses, or where the policy cannot
    share prompts a rectangle with its padding. Bounds memory and changes nothing else; None: no bound."""
    responses_per_microbatch: int | None = Field(default=None, ge=1)
    """Responses of a pass, beside that bound; None: no bound."""

    @property
    def at_a_time(self) -> str:
        """The bounds on memory in words."""
        bounds = {"tokens": self.tokens_per_microbatch, "responses": self.responses_per_microbatch}
        return " and ".join(f"at most {bound} {name}" for name, bound in bounds.items() if bound) or "all"

    def steps(self, responses: int) -> int:
        """Optimizer steps an iteration."""
        return self.epochs * math.ceil(responses / (self.responses_per_minibatch or responses))


@component
class TrainerOptions:
    """The Lightning Trainer: hardware, precision, clipping."""

    accelerator: Literal["auto", "cpu", "gpu", "cuda", "mps"] = "auto"
    devices: Literal[1] = 1
    precision: PrecisionName = "32-true"
    """auto: bf16-mixed where that is measured to be faster for the policy's layers, else 32-true."""
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

    @property
    def device_type(self) -> str:
        """Of what Lightning will take: cpu, cuda or mps."""
        wanted = {"auto": ("cuda", "mps"), "gpu": ("cuda", "mps")}.get(self.accelerator, (self.accelerator,))
        present = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
        return next((device for device in wanted if present.get(device)), "cpu")

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

        if self.precision == "auto":
            raise ValueError("precision=auto is to be chosen first: on_this_machine(policy)")
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
