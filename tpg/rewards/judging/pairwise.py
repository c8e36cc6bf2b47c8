"""A judge that compares responses to the same prompt."""

from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from pydantic import BaseModel, Field, field_validator

from tpg.component import component
from tpg.rewards.base import Failure, Sample, Told
from tpg.rewards.judging.endpoint import verdicts
from tpg.rewards.judging.options import JudgeOptions
from tpg.rewards.judging.rubric import check_rubric
from tpg.rewards.judging.scorer import EndpointScorer

ALONE = Failure("no opponent", "there is no other response to its prompt to compare it with")


@component
class PairwiseJudge(JudgeOptions):
    """The share of comparisons that a response wins against others to its prompt, ties half. (arXiv 2306.05685.)

    `rubric` reads `{first}` and `{second}`, and may read `{prompt}`, `{answer}` and columns of the task. Each pair is
    judged in both orders; where these disagree it is a tie. A pair with an order that could not be judged is left out,
    a response without any judged pair unscored.
    """

    min_group: ClassVar[int] = 2

    opponents: int | None = Field(default=None, ge=1)
    """A response is compared with so many that follow it in a circle of random order, and with as many before it, so
    that all meet equally many; None: with all.
    """
    seed: int = Field(default=0, ge=0, lt=2**62)

    @field_validator("rubric")
    @classmethod
    def _has_their_places(cls, rubric: str) -> str:
        return check_rubric(rubric, ["first", "second"])

    def load(self, key: str) -> "PairwiseScorer":
        """See `LoadedTerm.load`. Asks the endpoint for its models."""
        return PairwiseScorer(self, key)

    def verdict(self) -> type[BaseModel]:
        """The form of an answer."""
        return self.verdict_with("winner", Literal["first", "second", "tie"])

    def form(self) -> str:
        """The same in words."""
        return self.form_with("winner", '"first", "second" or "tie"')

    def pairs(self, texts: Sequence[str], group: tuple[int, int]) -> list[tuple[int, int]]:
        """Who meets whom; a function of the texts and their prompt's identity, not of the order they come in."""
        from tpg.randomness import Purpose, permutation

        count = len(texts)
        steps = count // 2 if self.opponents is None else min(self.opponents, count // 2)
        by_text = sorted(range(count), key=lambda place: texts[place])
        circle = [by_text[place] for place in permutation(count, self.seed, Purpose.LOTS, *group)]
        met = {
            frozenset((circle[at], circle[(at + step) % count])) for at in range(count) for step in range(1, steps + 1)
        }
        return sorted((min(pair), max(pair)) for pair in met)


@dataclass(frozen=True)
class Pair:
    """Two responses, by their places, and what was asked about them in either order."""

    one: int
    other: int
    asked: "tuple[Future[Any] | Failure, ...]"
    """Empty for equal texts: a tie that nobody is asked about."""


class PairwiseScorer(EndpointScorer[PairwiseJudge]):
    """Compares when the responses to a prompt are all there."""

    def __init__(self, options: PairwiseJudge, key: str) -> None:
        super().__init__(options, key)
        self._judged = self._disagreed = 0

    def outcomes(self, begun: Sequence[Sample]) -> list[float | Failure]:
        """Ask about the pairs, and wait for the verdicts."""
        groups: dict[tuple[int, int], list[int]] = defaultdict(list)
        for place, sample in enumerate(begun):
            groups[sample.group].append(place)
        pairs = [
            self._begin(places[one], places[other], begun)
            for group, places in groups.items()
            for one, other in self._options.pairs([begun[place].response for place in places], group)
        ]
        judged = iter(verdicts([each for pair in pairs for each in pair.asked], self.on_wait))
        points: dict[int, list[float]] = defaultdict(list)
        failures: dict[int, Failure] = {}
        for pair in pairs:
            result = self._points([next(judged) for _ in pair.asked])
            for place, won in ((pair.one, result), (pair.other, result)):
                if isinstance(won, Failure):
                    failures.setdefault(place, won)
                else:
                    points[place].append(won if place == pair.one else 1 - won)
        return [
            sum(points[place]) / len(points[place]) if points[place] else failures.get(place, ALONE)
            for place in range(len(begun))
        ]

    def metrics(self) -> dict[str, Told]:
        """What `Endpoint.metrics` tells, and the share of judged pairs whose orders disagreed."""
        judged, disagreed, self._judged, self._disagreed = self._judged, self._disagreed, 0, 0
        return {**super().metrics(), "judge_disagreement": Told(disagreed, judged)}

    def _begin(self, one: int, other: int, samples: Sequence[Sample]) -> Pair:
        if samples[one].response == samples[other].response:
            return Pair(one, other, ())
        texts = samples[one].response, samples[other].response
        both = ({"first": texts[0], "second": texts[1]}, {"first": texts[1], "second": texts[0]})
        return Pair(one, other, tuple(self.ask(samples[one], order) for order in both))

    def _points(self, orders: Sequence[Any]) -> float | Failure:
        """What the first of a pair gets by the verdicts on its orders; the other gets the rest of 1."""
        failed = next((verdict for verdict in orders if isinstance(verdict, Failure)), None)
        if failed is not None:
            return failed
        won = [{"first": 1.0, "second": 0.0, "tie": 0.5}[verdict.winner] for verdict in orders]
        if not won:
            return 0.5
        self._judged += 1
        agree = won[0] == 1 - won[1]
        self._disagreed += not agree
        return won[0] if agree else 0.5
