"""How the values of the terms become one reward a response."""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import ClassVar

from pydantic import Field

from tpg.component import component
from tpg.errors import UserError
from tpg.rewards.base import Sample
from tpg.spelling import did_you_mean

Values = Mapping[str, Sequence[float]]
"""Each term's values, one a response; NaN where the term failed."""


@component
class Schedule:
    """A weight that moves in a straight line from the term's own, in iteration 1, to `final`, and stays there."""

    final: float
    iterations: int = Field(ge=1)
    """Until `final` is reached, in iteration `1 + iterations`."""

    def weight(self, own: float, iteration: int | None) -> float:
        """The weight in iteration 1, 2, ...; None: after the last."""
        passed = 1.0 if iteration is None else min(1.0, (iteration - 1) / self.iterations)
        return (1.0 - passed) * own + passed * self.final


@component
class Combination(ABC):
    """What the terms of a response, and maybe of those to the same prompt, come to.

    A response has a reward where every term that counts for it has a value.
    """

    min_group: ClassVar[int] = 1
    """Responses to a prompt that are compared; 1: each has its reward by itself."""

    gates: dict[str, float] = Field(default_factory=dict)
    """The least value of a term below which, for this response, only the terms named here count; the others are 0."""
    schedules: dict[str, Schedule] = Field(default_factory=dict)
    """Weights that change from iteration to iteration, by term."""

    def check(self, terms: Iterable[str]) -> None:
        """Raise `UserError` for a gate or a schedule of a term that there is not."""
        known = list(terms)
        given: dict[str, Iterable[str]] = {"gates": self.gates, "schedules": self.schedules}
        for key, named in given.items():
            for name in named:
                if name not in known:
                    there = ", ".join(known)
                    near = did_you_mean(name, known)
                    raise UserError(f"combination.{key}.{name}: reward_model has no such term but {there}{near}")

    def rewards(
        self, values: Values, weights: Mapping[str, float], samples: Sequence[Sample], iteration: int
    ) -> list[float]:
        """Give each response's reward in iteration 1, 2, ... of training; NaN where a term that counts has no value."""
        return self.combined(self.parts(values, self.weights(weights, iteration), samples), samples)

    def absolute(self, values: Values, weights: Mapping[str, float], samples: Sequence[Sample]) -> list[float]:
        """Give each response's reward by itself, with the last weights, as held-out responses are judged."""
        last = self.weights(weights, None)
        return sums(weighted(self.counted(values, last), last))

    def weights(self, own: Mapping[str, float], iteration: int | None) -> dict[str, float]:
        """Give each term's weight in iteration 1, 2, ..., or after the last."""
        scheduled = {name: schedule.weight(own[name], iteration) for name, schedule in self.schedules.items()}
        return {**own, **scheduled}

    def counted(self, values: Values, weights: Mapping[str, float]) -> Values:
        """Give the values as they count.

        That is 0 of a term of weight 0, be it without a value, and of the others where a gate's term is below its least
        value; a gate's own term always counts.
        """
        values = {
            name: column if weights[name] or name in self.gates else [0.0] * len(column)
            for name, column in values.items()
        }
        if not self.gates:
            return values
        rows = zip(*(values[name] for name in self.gates), strict=True)
        shut = [any(map(below, row, self.gates.values())) for row in rows]
        return {
            name: list(column)
            if name in self.gates
            else [0.0 if closed else value for value, closed in zip(column, shut, strict=True)]
            for name, column in values.items()
        }

    def parts(self, values: Values, weights: Mapping[str, float], samples: Sequence[Sample]) -> Values:
        """Give what each term adds to the sum that the rewards are made from."""
        return weighted(self.counted(values, weights), weights)

    @abstractmethod
    def combined(self, parts: Values, samples: Sequence[Sample]) -> list[float]:
        """Make rewards from what each term adds; NaN where one of these is."""


@component
class WeightedSum(Combination):
    """`sum of weight x value` over the terms."""

    def combined(self, parts: Values, samples: Sequence[Sample]) -> list[float]:
        """Add them up."""
        return sums(parts)


def below(value: float, least: float) -> bool:
    """Whether a gate is shut; a value that misses by no more than float32 rounds off does not miss."""
    return value < least - 1e-6 * max(1.0, abs(least))


def weighted(values: Values, weights: Mapping[str, float]) -> Values:
    """Every value times its term's weight."""
    return {name: [weights[name] * value for value in column] for name, column in values.items()}


def sums(parts: Values) -> list[float]:
    """The sum over the terms, one a response; NaN where a term has no value."""
    return [sum(row) for row in zip(*parts.values(), strict=True)]


def in_groups(samples: Sequence[Sample], rewards: Sequence[float]) -> list[list[int]]:
    """The places of the responses to one prompt, prompt by prompt, without those whose reward is NaN."""
    groups: dict[tuple[int, int], list[int]] = {}
    for place, (sample, reward) in enumerate(zip(samples, rewards, strict=True)):
        if not math.isnan(reward):
            groups.setdefault(sample.group, []).append(place)
    return list(groups.values())
