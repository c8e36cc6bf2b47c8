"""A judge that gives each response a score."""

from collections.abc import Sequence
from concurrent.futures import Future
from typing import Annotated, Any, Self

from pydantic import BaseModel, Field, field_validator, model_validator

from tpg.component import component
from tpg.rewards.base import Failure, Sample
from tpg.rewards.judging.endpoint import verdicts
from tpg.rewards.judging.options import JudgeOptions
from tpg.rewards.judging.rubric import check_rubric
from tpg.rewards.judging.scorer import EndpointScorer


@component
class Judge(JudgeOptions):
    """The score that a language model gives a response by a rubric. (arXiv 2306.05685.)

    `rubric` reads `{response}`, and may read `{prompt}`, `{answer}` and columns of the task. An answer that is not of
    the wanted form, or a score outside `lowest` to `highest`, is asked for again, then unscored.
    """

    lowest: float = 0.0
    highest: float = 10.0
    whole_numbers: bool = True
    """Whether scores between whole numbers are malformed."""
    to_unit: bool = True
    """Bring `lowest` to 0 and `highest` to 1; else the score as it is given."""

    @field_validator("rubric")
    @classmethod
    def _has_its_place(cls, rubric: str) -> str:
        return check_rubric(rubric, ["response"])

    @model_validator(mode="after")
    def _is_a_range(self) -> Self:
        if self.lowest >= self.highest:
            raise ValueError(f"lowest={self.lowest:g} must be below highest={self.highest:g}")
        if self.whole_numbers and not (self.lowest.is_integer() and self.highest.is_integer()):
            raise ValueError("whole_numbers=true needs whole numbers as lowest and highest")
        return self

    def load(self, key: str) -> "JudgeScorer":
        """See `LoadedTerm.load`. Asks the endpoint for its models."""
        return JudgeScorer(self, key)

    def verdict(self) -> type[BaseModel]:
        """The form of an answer."""
        number: Any = int if self.whole_numbers else float
        return self.verdict_with("score", Annotated[number, Field(ge=number(self.lowest), le=number(self.highest))])

    def form(self) -> str:
        """The same in words."""
        kind = "whole number" if self.whole_numbers else "number"
        return self.form_with("score", f"a {kind} from {self.lowest:g} to {self.highest:g}")

    def value(self, score: float) -> float:
        """What a score comes to."""
        return (score - self.lowest) / (self.highest - self.lowest) if self.to_unit else float(score)


class JudgeScorer(EndpointScorer[Judge]):
    """Asks about each response as soon as that is there."""

    def begin(self, sample: Sample) -> "Future[Any] | Failure":
        """Ask."""
        return self.ask(sample, {"response": sample.response})

    def outcomes(self, begun: Sequence["Future[Any] | Failure"]) -> list[float | Failure]:
        """Wait for the verdicts."""
        judged = verdicts(begun, self.on_wait)
        return [each if isinstance(each, Failure) else self._options.value(each.score) for each in judged]
