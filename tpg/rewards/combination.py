"""How the values of the terms become one reward a response."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence

from tpg.component import component
from tpg.rewards.base import Sample

Values = Mapping[str, Sequence[float]]
"""Each term's values, one a response; NaN where the term failed."""


@component
class Combination(ABC):
    """What the terms of a response, and maybe of those to the same prompt, come to."""

    @abstractmethod
    def rewards(
        self, values: Values, weights: Mapping[str, float], samples: Sequence[Sample], iteration: int
    ) -> list[float]:
        """Give each response's reward in iteration 1, 2, ... of training; NaN where a term has no value."""

    def absolute(self, values: Values, weights: Mapping[str, float], samples: Sequence[Sample]) -> list[float]:
        """Give each response's reward by itself, as held-out responses are judged."""
        return weighted_sums(values, weights)


@component
class WeightedSum(Combination):
    """`sum of weight x value` over the terms."""

    def rewards(
        self, values: Values, weights: Mapping[str, float], samples: Sequence[Sample], iteration: int
    ) -> list[float]:
        """Give the same in every iteration."""
        return weighted_sums(values, weights)


def weighted_sums(values: Values, weights: Mapping[str, float]) -> list[float]:
    """`sum of weight x value`, one a response; NaN where a term has no value."""
    names = list(values)
    rows = zip(*(values[name] for name in names), strict=True)
    return [sum(weights[name] * value for name, value in zip(names, row, strict=True)) for row in rows]
