"""What a task is: two disjoint lists of examples, both functions of the seed."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from tpg.component import component


@dataclass(frozen=True)
class Example:
    """One prompt with what the rewards need to judge an answer to it."""

    prompt: str
    answer: str | None = None
    columns: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Examples:
    """A task's prompts: those to train on and those held out. No prompt is in both."""

    train: tuple[Example, ...]
    evaluation: tuple[Example, ...]
    notes: tuple[str, ...] = ()
    """What the user should know of how they came about (duplicates left out, rows filtered), a line each."""


@component
class Task(ABC):
    """Where prompts and answer keys come from."""

    system_prompt: str | None = None
    """Put before every prompt as the system message; needs a tokenizer with a chat template."""

    @abstractmethod
    def columns(self) -> frozenset[str]:
        """The columns every example offers to rewards (`answer` among them when it has one). Loads nothing."""

    @abstractmethod
    def load(self, seed: int) -> Examples:
        """Make or read the examples. Raises `UserError` when a file or column is missing."""

    def demonstrations(self, seed: int, count: int) -> tuple[tuple[str, str], ...]:
        """`count` pairs of prompt and ideal response for a supervised warm start, none of them held out."""
        raise NotImplementedError(f"{type(self).__name__} offers no demonstrations")
