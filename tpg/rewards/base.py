"""What a reward term is and what it sees."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

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
        """The term's value for one complete response, before its weight."""

    def required_columns(self) -> frozenset[str]:
        """The columns of the task that this term reads (`answer` among them)."""
        return frozenset()
