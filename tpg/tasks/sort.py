"""Sorting the digits of a number: a task with partial credit that a tiny policy learns in minutes."""

import random

from pydantic import Field

from tpg.component import component
from tpg.errors import UserError
from tpg.tasks.base import Example, Examples, Task


@component
class Sort(Task):
    """Numbers of `digits` digits (zeros in front allowed), drawn uniformly, whose digits are to be sorted.

    Raises `UserError` when there are fewer such numbers than prompts asked for.
    """

    digits: int = Field(default=6, ge=1, le=18)
    train_size: int = Field(default=2048, ge=1)
    evaluation_size: int = Field(default=256, ge=1)

    def __post_init__(self) -> None:
        if self.train_size + self.evaluation_size > 10**self.digits:
            raise UserError(
                f"task.digits={self.digits} gives {10**self.digits} distinct prompts, but task.train_size="
                f"{self.train_size} and task.evaluation_size={self.evaluation_size} ask for "
                f"{self.train_size + self.evaluation_size}: raise task.digits or lower the sizes"
            )

    def columns(self) -> frozenset[str]:
        """Offer the answer."""
        return frozenset({"answer"})

    def load(self, seed: int) -> Examples:
        """Distinct numbers."""
        examples = tuple(Example(prompt, answer) for prompt, answer in map(self._pair, self._numbers(seed)))
        return Examples(train=examples[self.evaluation_size :], evaluation=examples[: self.evaluation_size])

    def demonstrations(self, seed: int, count: int) -> tuple[tuple[str, str], ...]:
        """`count` pairs of prompt and answer, none of them held out; one may come twice."""
        held_out = set(self._numbers(seed)[: self.evaluation_size])
        rng = random.Random(f"{seed}-sort-demonstrations")
        drawn = iter(lambda: rng.randrange(10**self.digits), None)
        allowed = (number for number in drawn if number not in held_out)
        return tuple(self._pair(number) for number, _ in zip(allowed, range(count), strict=False))

    def _numbers(self, seed: int) -> list[int]:
        rng = random.Random(f"{seed}-sort")
        return rng.sample(range(10**self.digits), self.evaluation_size + self.train_size)

    def _pair(self, number: int) -> tuple[str, str]:
        digits = f"{number:0{self.digits}d}"
        return f"sort {digits}:", "".join(sorted(digits))
