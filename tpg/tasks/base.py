"""What a task is: two disjoint lists of examples, both functions of the seed."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from pydantic import Field

from tpg.component import component

Message = Mapping[str, Any]
"""One turn of a chat: `role`, `content`, and whatever else the policy's chat template reads."""


@dataclass(frozen=True)
class Example:
    """One prompt with what the rewards need to judge an answer to it."""

    prompt: str | tuple[Message, ...]
    """The user's message, or a whole chat up to the assistant's turn."""
    answer: str | None = None
    columns: Mapping[str, Any] = field(default_factory=dict)

    @property
    def messages(self) -> tuple[Message, ...]:
        """The prompt as a chat."""
        return ({"role": "user", "content": self.prompt},) if isinstance(self.prompt, str) else self.prompt

    @property
    def text(self) -> str:
        """The prompt as rewards and reports see it: the messages' contents, a line between two."""
        return "\n".join(message["content"] for message in self.messages)


@dataclass(frozen=True)
class Examples:
    """A task's prompts: those to train on and those held out. No prompt is in both."""

    train: tuple[Example, ...]
    evaluation: tuple[Example, ...]
    notes: tuple[str, ...] = ()
    """What the user should know of how they came about (duplicates left out, rows filtered), a line each."""


@dataclass(frozen=True)
class Preference:
    """Two responses to one prompt, of which somebody preferred one."""

    prompt: str | tuple[Message, ...]
    chosen: str
    rejected: str


@component
class Task(ABC):
    """Where prompts and answer keys come from."""

    system_prompt: str | None = None
    """Put before every prompt as the system message; needs a tokenizer with a chat template."""
    chat_template_kwargs: dict[str, Any] = Field(default_factory=dict)
    """Given to the chat template, e.g. `{enable_thinking: false}`."""
    overlong_prompts: Literal["raise", "filter"] = "raise"
    """What becomes of prompts longer than `rollout.max_prompt_tokens`. None is ever cut."""

    def check(self) -> None:  # noqa: B027
        """Raise `UserError` if what the task reads is missing; reads no more than headers."""

    @abstractmethod
    def columns(self) -> frozenset[str]:
        """Name the columns every example offers to rewards (`answer` among them when it has one). Loads nothing."""

    @abstractmethod
    def load(self, seed: int) -> Examples:
        """Make or read the examples. Raises `UserError` when a file or column is missing."""

    def demonstrations(self, seed: int, count: int) -> tuple[tuple[str, str], ...]:
        """`count` pairs of prompt and ideal response for a supervised warm start; with this seed none is held out."""
        raise NotImplementedError(f"{type(self).__name__} offers no demonstrations")

    def preferences(self, seed: int, count: int) -> tuple[Preference, ...]:
        """`count` pairs of responses to a prompt, the better named, to train a reward model; no prompt is held out."""
        raise NotImplementedError(f"{type(self).__name__} offers no preferences")


def held_out_count(total: int, share: float) -> int:
    """How many of `total` (at least 2) to hold out: the rounded share, leaving at least one on either side."""
    return min(max(round(total * share), 1), total - 1)
