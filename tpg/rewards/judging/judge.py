"""A judge that gives each response a score."""

from collections.abc import Sequence
from concurrent.futures import Future
from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, create_model, field_validator, model_validator

from tpg.component import component
from tpg.errors import with_kind
from tpg.rewards.base import Failure, Sample, Scorer
from tpg.rewards.judging.endpoint import Endpoint
from tpg.rewards.judging.options import JudgeOptions
from tpg.rewards.judging.rubric import check_rubric

STRICT = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)


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
        wanted: dict[str, Any] = {"reason": (str, ...)} if self.explain else {}
        wanted["score"] = (Annotated[number, Field(ge=number(self.lowest), le=number(self.highest))], ...)
        return create_model("Verdict", __config__=STRICT, **wanted)

    def form(self) -> str:
        """The same in words."""
        reason = '"reason": "<why, in a sentence or two>", ' if self.explain else ""
        kind = "whole number" if self.whole_numbers else "number"
        return f'{{{reason}"score": <a {kind} from {self.lowest:g} to {self.highest:g}>}}'

    def value(self, score: float) -> float:
        """What a score comes to."""
        return (score - self.lowest) / (self.highest - self.lowest) if self.to_unit else float(score)


class JudgeScorer(Scorer):
    """Asks about each response as soon as that is there."""

    def __init__(self, options: Judge, key: str) -> None:
        self._options = options
        self._endpoint = Endpoint(options, options.verdict(), key)

    def begin(self, sample: Sample) -> "Future[Any] | Failure":
        """Ask."""
        try:
            messages = self._options.messages(sample, {"response": sample.response}, self._options.form())
        except (LookupError, TypeError) as error:
            return Failure("raised", with_kind(error))
        return self._endpoint.ask(messages)

    def outcomes(self, begun: Sequence["Future[Any] | Failure"]) -> list[float | Failure]:
        """Wait for the verdicts."""
        verdicts = [each if isinstance(each, Failure) else each.result() for each in begun]
        return [each if isinstance(each, Failure) else self._options.value(each.score) for each in verdicts]

    def metrics(self) -> dict[str, float]:
        """See `Endpoint.metrics`."""
        return self._endpoint.metrics()

    def close(self) -> None:
        """Give up what is under way."""
        self._endpoint.close()
