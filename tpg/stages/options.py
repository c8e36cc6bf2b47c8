"""A whole stage as typed options, and what must hold between them."""

from abc import ABC, abstractmethod
from typing import Literal

from pydantic import Field

from tpg.component import component
from tpg.errors import UserError
from tpg.policies.base import PolicyOptions
from tpg.tasks.base import Task
from tpg.tasks.demonstrations import Demonstrations
from tpg.tasks.preferences import Preferences
from tpg.training.optimizers import OptimizerOptions
from tpg.training.options import Checkpointing
from tpg.training.tracking.loggers import LoggerOptions
from tpg.training.trainer import TrainerOptions


@component
class Stage(ABC):
    """What both stages run on. A step is an optimizer step, and what training calls an iteration."""

    seed: int = Field(ge=0, lt=2**62)
    epochs: int = Field(ge=1)
    """Passes over the data."""
    tokens_per_microbatch: int | None = Field(ge=1)
    """Tokens of a forward and backward pass. Bounds memory and changes nothing else; None: no bound."""
    max_tokens: int = Field(ge=2)
    """Limit on a prompt with its response."""
    overlong: Literal["raise", "filter"]
    """What becomes of those that are longer. None is ever cut."""
    evaluate_every: int | None = Field(ge=1)
    """Steps between two measurements on what is held out; None: one an epoch. Also before the first, after the last."""
    policy: PolicyOptions
    task: Task
    optimizer: OptimizerOptions
    trainer: TrainerOptions
    checkpoint: Checkpointing
    logger: dict[str, LoggerOptions] = Field(default_factory=dict)

    @property
    @abstractmethod
    def per_step(self) -> int:
        """How many rows of the data an optimizer step is made on."""

    @abstractmethod
    def check_data(self) -> None:
        """Raise `UserError` if the data is not to be had, or the loss asks for what it has not."""

    def check(self) -> None:
        """Raise `UserError` for what cannot run here. Loads nothing."""
        if self.trainer.processes > 1 or self.trainer.strategy != "single":
            alone = self.trainer.strategy == "single"
            given = f"devices={self.trainer.devices}" if alone else f"strategy={self.trainer.strategy}"
            raise UserError(f"trainer.{given}: a stage before RL runs on one device; use trainer=auto")
        self.check_data()
        self.policy.check()
        self.trainer.check()
        self.optimizer.check()
        for name, logger in self.logger.items():
            logger.check(f"logger.{name}")


@component
class SupervisedStage(Stage):
    """Everything that `tpg.sft` runs on."""

    demonstrations: Demonstrations
    responses_per_step: int = Field(ge=1)

    @property
    def per_step(self) -> int:
        """Responses."""
        return self.responses_per_step

    def check_data(self) -> None:
        """Ask the demonstrations."""
        self.demonstrations.check(self.task)


@component
class PreferenceStage(Stage):
    """Everything that `tpg.reward` runs on."""

    preferences: Preferences
    pairs_per_step: int = Field(ge=1)
    margin: float = Field(ge=0)
    """By how much the chosen one's reward is to be the greater."""
    centering: float = Field(ge=0)
    """Coefficient of the mean of (r_chosen + r_rejected)^2 in the loss, which draws rewards towards a mean of zero."""
    bins: int = Field(ge=1)
    """Of the probability that the calibration is measured in."""

    @property
    def per_step(self) -> int:
        """Pairs."""
        return self.pairs_per_step

    def check_data(self) -> None:
        """Ask the preferences; a margin may come from one place."""
        if self.margin and self.preferences.tells_margins():
            raise UserError(f"margin={self.margin}: preferences.margin gives every pair its own; leave out one of them")
        self.preferences.check(self.task)


def limit(stage: Stage, positions: int | None) -> int:
    """The most tokens that a prompt and its response may have: the stage's limit or the context, if that is less."""
    return min(stage.max_tokens, positions) if positions is not None else stage.max_tokens
