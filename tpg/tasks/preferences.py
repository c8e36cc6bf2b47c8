"""Pairs of responses of which one was preferred, for a reward model: a task's own, or a dataset's."""

import math
import reprlib
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

from pydantic import Field

from tpg.component import component
from tpg.errors import UserError
from tpg.tasks.base import Task
from tpg.tasks.cells import Prompt, messages_of, prompt_of, response_of
from tpg.tasks.source import Row
from tpg.tasks.table import Parts, Table, divided


@dataclass(frozen=True)
class Pair:
    """Two responses to one prompt, of which the chosen one was preferred."""

    prompt: Prompt
    chosen: str
    rejected: str
    margin: float | None = None
    """By how much the chosen one's reward is to be the greater, where the data tells."""


@component
class Preferences(ABC):
    """Where the pairs come from."""

    @abstractmethod
    def check(self, task: Task) -> None:
        """Raise `UserError` if they are not to be had; reads no more than headers."""

    @abstractmethod
    def load(self, task: Task, seed: int) -> Parts[Pair]:
        """All of them, divided by prompts. Raises `UserError` for a row that holds none."""

    def tells_margins(self) -> bool:
        """Whether every pair comes with a margin of its own."""
        return False


@component
class TaskPreferences(Preferences):
    """The task's own; none is of a prompt that the task holds out."""

    count: int = Field(default=2048, ge=2)
    """How many are drawn."""
    held_out: float = Field(default=0.1, gt=0, lt=1)
    """The share of their prompts whose pairs are kept to measure accuracy and calibration on."""

    def check(self, task: Task) -> None:
        """Whether the task has any."""
        if type(task).preferences is Task.preferences:
            raise UserError(
                f"preferences: {type(task).__name__} offers none; use preferences=dataset preferences.path=..., or a"
                " task that does, e.g. task=hidden_reward"
            )

    def load(self, task: Task, seed: int) -> Parts[Pair]:
        """As many as were asked for."""
        pairs = [Pair(made.prompt, made.chosen, made.rejected) for made in task.preferences(seed, self.count)]
        return divided(pairs, lambda pair: pair.prompt, self.held_out, seed, f"preferences.count={self.count}")


@component
class DatasetPreferences(Table, Preferences):
    """A table with a prompt, a chosen and a rejected response in every row."""

    group: ClassVar[str] = "preferences"
    chosen: str = "chosen"
    """The column of the preferred responses: text, or a chat that ends with one."""
    rejected: str = "rejected"
    margin: str | None = None
    """The column of the margins, numbers from 0 on."""

    def response_columns(self) -> dict[str, str]:
        """Both responses, and the margin."""
        margin = {} if self.margin is None else {"margin": self.margin}
        return {"chosen": self.chosen, "rejected": self.rejected, **margin}

    def row(self, row: Row, place: str) -> Pair:
        """A pair. A chat in a response's column must begin with the prompt, if with anything."""
        prompt = prompt_of(row[self.prompt], f"{place}: {self.prompt}")
        chosen, rejected = (
            _response(row[column], prompt, f"{place}: {column}") for column in (self.chosen, self.rejected)
        )
        if chosen == rejected:
            raise UserError(f"{place}: {self.chosen} and {self.rejected} are the same; leave such rows out")
        margin = None if self.margin is None else _margin(row[self.margin], f"{place}: {self.margin}")
        return Pair(prompt, chosen, rejected, margin)

    def tells_margins(self) -> bool:
        """Where there is a column of them."""
        return self.margin is not None

    def check(self, task: Task) -> None:
        """Look at the files."""
        self.check_files()

    def load(self, task: Task, seed: int) -> Parts[Pair]:
        """Read the rows."""
        return self.read(lambda pair: pair.prompt, seed)


def _response(value: Any, prompt: Prompt, place: str) -> str:
    response = response_of(value, place)
    before = [] if isinstance(value, str) else messages_of(value, place)[:-1]
    messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    if before and [turn["content"] for turn in before] != [turn["content"] for turn in messages]:
        raise UserError(f"{place}: its turns before the last are not the prompt's")
    return response


def _margin(value: Any, place: str) -> float:
    try:
        margin = float(value)
    except (TypeError, ValueError):
        margin = math.nan
    if not 0 <= margin < math.inf:
        raise UserError(f"{place} must be a number from 0 on, not {reprlib.repr(value)}")
    return margin
