"""A whole stage as typed options, and what must hold between them."""

import reprlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
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
        if self.trainer.shards:
            raise UserError(
                f"trainer.strategy={self.trainer.strategy}: a stage before RL holds the whole model on every device;"
                " use trainer=ddp or trainer=auto"
            )
        if self.trainer.num_nodes > 1:
            raise UserError(
                f"trainer.num_nodes={self.trainer.num_nodes}: a stage before RL runs on one node; use"
                " trainer.num_nodes=1"
            )
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


def short_enough(
    stage: Stage, positions: int | None, lengths: Sequence[int], what: str, prompt_of: Callable[[int], str]
) -> list[int]:
    """The rows that are within the stage's limit and the context of so many positions; lengths in tokens.

    Raises `UserError` where one is not, unless it is to be left out and others remain. It says `what` of the rows.
    """
    most = stage.max_tokens if positions is None else min(stage.max_tokens, positions)
    kept = [row for row, length in enumerate(lengths) if length <= most]
    if len(kept) < len(lengths) and (stage.overlong == "raise" or not kept):
        longest = max(range(len(lengths)), key=lengths.__getitem__)
        bound = f"max_tokens={most}" if most == stage.max_tokens else f"the policy's context is {most} tokens"
        raise UserError(
            f"{bound}: {len(lengths) - len(kept)} of {len(lengths)} {what}, the longest {lengths[longest]} tokens"
            f" ({reprlib.repr(prompt_of(longest))})"
            + (": raise it" if most == stage.max_tokens else "")
            + (", or leave them out with overlong=filter" if kept else "")
        )
    return kept
