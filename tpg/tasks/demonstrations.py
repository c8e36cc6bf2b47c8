"""Prompts with a response to imitate, for supervised training: a task's own, or a dataset's."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

from pydantic import Field

from tpg.component import component
from tpg.errors import UserError
from tpg.tasks.base import Task
from tpg.tasks.cells import Prompt, messages_of, prompt_of, response_of
from tpg.tasks.source import Row
from tpg.tasks.table import Parts, Table, divided


@dataclass(frozen=True)
class Demonstration:
    """A prompt and the response that the policy is to learn."""

    prompt: Prompt
    response: str


@component
class Demonstrations(ABC):
    """Where the pairs of prompt and response come from."""

    @abstractmethod
    def check(self, task: Task) -> None:
        """Raise `UserError` if they are not to be had; reads no more than headers."""

    @abstractmethod
    def load(self, task: Task, seed: int) -> Parts[Demonstration]:
        """All of them, divided by prompts. Raises `UserError` for a row that holds none."""


@component
class TaskDemonstrations(Demonstrations):
    """The task's own; none is of a prompt that the task holds out."""

    count: int = Field(default=2048, ge=2)
    """How many are drawn."""
    held_out: float = Field(default=0.1, gt=0, lt=1)
    """The share of their prompts that is kept to measure the loss on."""

    def check(self, task: Task) -> None:
        """Whether the task has any."""
        if type(task).demonstrations is Task.demonstrations:
            raise UserError(
                f"demonstrations: {type(task).__name__} offers none; use demonstrations=dataset"
                " demonstrations.path=..., or a task that does, e.g. task=sort"
            )

    def load(self, task: Task, seed: int) -> Parts[Demonstration]:
        """As many as were asked for."""
        pairs = [Demonstration(prompt, response) for prompt, response in task.demonstrations(seed, self.count)]
        return divided(pairs, lambda pair: pair.prompt, self.held_out, seed, f"demonstrations.count={self.count}")


@component
class DatasetDemonstrations(Table, Demonstrations):
    """A table with a prompt and a response in every row."""

    group: ClassVar[str] = "demonstrations"
    response: str | None = "response"
    """The column of the responses, text or a chat that ends with one; None: the prompts' column holds whole chats."""

    def response_columns(self) -> dict[str, str]:
        """The response, where it has a column of its own."""
        return {} if self.response is None else {"response": self.response}

    def row(self, row: Row, place: str) -> Demonstration:
        """A pair."""
        place_of_prompt = f"{place}: {self.prompt}"
        if self.response is not None:
            response = response_of(row[self.response], f"{place}: {self.response}")
            return Demonstration(prompt_of(row[self.prompt], place_of_prompt), response)
        *before, last = messages_of(row[self.prompt], place_of_prompt)
        if not before or last["role"] != "assistant":
            raise UserError(f"{place_of_prompt} must be a chat that ends with the assistant's turn")
        return Demonstration(tuple(before), str(last["content"]))

    def check(self, task: Task) -> None:
        """Look at the files."""
        self.check_files()

    def load(self, task: Task, seed: int) -> Parts[Demonstration]:
        """Read the rows."""
        return self.read(lambda pair: pair.prompt, seed)
