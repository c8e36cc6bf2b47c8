"""Sums of two numbers: the smallest task with a right answer."""

import itertools
import random

from pydantic import Field

from tpg.component import component
from tpg.errors import UserError
from tpg.tasks.base import Example, Examples, Task, held_out_count


@component
class Addition(Task):
    """x + y for all pairs of numbers from `low` to `high`. Raises `UserError` unless `low < high`."""

    low: int = 1
    high: int = 9
    held_out: float = Field(default=0.2, gt=0, lt=1)
    """The share of the pairs kept for evaluation."""

    def __post_init__(self) -> None:
        if self.low >= self.high:
            raise UserError(f"task.low={self.low} must be below task.high={self.high}")

    def columns(self) -> frozenset[str]:
        """Offer the answer."""
        return frozenset({"answer"})

    def load(self, seed: int) -> Examples:
        """All pairs in the seed's order; the first are held out."""
        numbers = range(self.low, self.high + 1)
        examples = [_example(x, y) for x, y in itertools.product(numbers, numbers)]
        random.Random(f"{seed}-addition").shuffle(examples)
        count = held_out_count(len(examples), self.held_out)
        return Examples(train=tuple(examples[count:]), evaluation=tuple(examples[:count]))


def _example(x: int, y: int) -> Example:
    return Example(f"What is {x} + {y}? Reply with the number only.", answer=str(x + y))
