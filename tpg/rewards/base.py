"""What a reward term is and what it sees."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal, SupportsFloat

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
    group: tuple[int, int] = (0, 0)
    """The dataset row of its prompt, and which drawing of it: what the responses to one prompt share."""


Reason = Literal[
    "raised",
    "timed out",
    "NaN",
    "process died",
    "out of memory",
    "too long",
    "unreachable",
    "rate limited",
    "server error",
    "refused",
    "malformed",
    "no opponent",
]
"""From `unreachable` on, of judges."""


@dataclass(frozen=True)
class Failure:
    """Why a term has no value for a response."""

    reason: Reason
    cause: str
    """One line: the exception's type and message, or what else happened."""


@dataclass(frozen=True)
class Told:
    """A metric of some responses, which adds up with that of others: a total, or a mean over `count`."""

    total: float
    count: float | None = None
    """None: the total is the metric."""

    def __add__(self, other: "Told") -> "Told":
        return Told(
            self.total + other.total, None if self.count is None or other.count is None else self.count + other.count
        )

    @property
    def value(self) -> float:
        """The metric; a mean over nothing is 0."""
        if self.count is None:
            return self.total
        return self.total / self.count if self.count else 0.0


def values_of(told: Mapping[str, Told]) -> dict[str, float]:
    """Metrics as numbers."""
    return {name: each.value for name, each in told.items()}


@component
class Term:
    """One named part of the reward, and how much it counts."""

    min_group: ClassVar[int] = 1
    """Responses to a prompt that it compares; 1: each has its value by itself."""

    weight: float = 1.0

    def required_columns(self) -> frozenset[str]:
        """Name the columns of the task that this term reads (`answer` among them)."""
        return frozenset()

    def files(self) -> dict[str, Path]:
        """The files and models' folders of this machine that decide its values, by the key that names each."""
        return {}

    def check(self, key: str) -> None:
        """Raise `UserError`, which begins with `key`, for what is missing. Nothing is loaded for it."""


@component
class RewardTerm(Term, ABC):
    """A term that is a function: a response in, a number out. It runs in processes that can be killed.

    `score` may raise, hang or return NaN: the response is then unscored, never zero.
    """

    timeout_s: float = Field(default=10.0, gt=0)

    @abstractmethod
    def score(self, sample: Sample) -> float:
        """Give the term's value for one complete response, before its weight."""

    def warm_up(self) -> None:
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


def go_on() -> None:
    """What a wait does that nothing interrupts."""


class Scorer(ABC):
    """A term that is loaded, in the process that trains: a model's weights, a connection to a judge."""

    learns: bool = False
    """Whether its values depend on what earlier iterations of training have scored: `seen` and `learn` are called."""
    on_wait: Callable[[], None] = staticmethod(go_on)
    """To be called about every second while `outcomes` takes its time; what it raises is to end that."""

    def begin(self, sample: Sample) -> Any:
        """Begin with a complete response, if that can be done before the others are there; what `outcomes` takes."""
        return sample

    @abstractmethod
    def outcomes(self, begun: Sequence[Any]) -> list[float | Failure]:
        """Give the value of each, before the term's weight, or why there is none; in their order."""

    def metrics(self) -> dict[str, Told]:
        """What is to be logged as `rewards/<term>/...` beside the values, since this was last asked."""
        return {}

    def seen(self) -> list[float]:
        """What `learn` is to be told of the last call of `outcomes`."""
        return []

    def learn(self, seen: Sequence[float]) -> None:  # noqa: B027
        """Take in what all processes have seen in an iteration of training, which is over."""

    def state(self) -> dict[str, Any]:
        """What it carries from one iteration to the next, in numbers and texts."""
        return {}

    def restore(self, state: Mapping[str, Any]) -> None:  # noqa: B027
        """Take back the state that a checkpoint holds."""

    def to(self, device: str) -> None:  # noqa: B027
        """Move what computes to the device of the process that trains, unless the term names one of its own."""

    def close(self) -> None:  # noqa: B027
        """Free what is held."""


@component
class LoadedTerm(Term, ABC):
    """A term that the process that trains loads: a learned model, a judge."""

    @abstractmethod
    def load(self, key: str) -> Scorer:
        """Load it. Raises `UserError`, which begins with `key`, when it is not to be had."""


def as_number(value: object) -> float:
    """Turn a term's value into a float. Raises `TypeError` for whatever is not one real number, text included."""
    if not isinstance(value, SupportsFloat):
        raise TypeError(f"a reward must be a number, not {value!r}")
    return float(value)
