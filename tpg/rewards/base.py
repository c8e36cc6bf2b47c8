"""What a reward term is and what it sees."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, SupportsFloat

from pydantic import Field

from tpg.component import component


@dataclass(frozen=True)
class Sample:
    """One complete response, as a reward term sees it."""

    prompt: str
    """The prompt's text as the task wrote it, before any chat template."""
    response: str
    """The response's text, special tokens left out."""
    token_ids: tuple[int, ...] = ()
    """The response's tokens, the end-of-sequence token included when it was sampled."""
    truncated: bool = False
    """Whether the response was cut at the length limit instead of ending by itself."""
    answer: str | None = None
    """The task's answer key."""
    columns: Mapping[str, Any] = field(default_factory=dict)
    """Whatever else the task knows of this prompt."""


@component
class RewardTerm(ABC):
    """One named part of the reward: a response in, a number out.

    `score` may raise, hang or return NaN: the response is then unscored, never zero.
    """

    weight: float = 1.0
    timeout_s: float = Field(default=10.0, gt=0)

    @abstractmethod
    def score(self, sample: Sample) -> float:
        """Give the term's value for one complete response, before its weight."""

    def required_columns(self) -> frozenset[str]:
        """Name the columns of the task that this term reads (`answer` among them)."""
        return frozenset()

    def warm_up(self) -> None:  # noqa: B027
        """Import what scoring needs. Called as a worker process starts, where no time-out runs."""


@component
class AnswerTerm(RewardTerm):
    """A term that holds the response against the task's answer key."""

    @abstractmethod
    def compare(self, sample: Sample, answer: str) -> float:
        """Give the term's value for one complete response, before its weight."""

    def score(self, sample: Sample) -> float:
        """Say what `compare` says. Raises `ValueError` when this sample's answer key is missing."""
        if sample.answer is None:
            raise ValueError("this sample has no answer to compare with")
        return self.compare(sample, sample.answer)

    def required_columns(self) -> frozenset[str]:
        """Name the answer key."""
        return frozenset({"answer"})


def as_number(value: object) -> float:
    """Turn a term's value into a float. Raises `TypeError` for whatever is not one real number, text included."""
    if not isinstance(value, SupportsFloat):
        raise TypeError(f"a reward must be a number, not {value!r}")
    return float(value)
