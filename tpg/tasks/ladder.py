"""Sorting numbers of several lengths: easy prompts and hard ones in one task."""

import random
from typing import Annotated

from pydantic import Field

from tpg.component import component
from tpg.errors import UserError
from tpg.tasks.base import Example, Examples, Task

Length = Annotated[int, Field(ge=1, le=18)]
Size = Annotated[int, Field(ge=0)]


@component
class Ladder(Task):
    """Numbers of several lengths whose digits are to be sorted; the column `digits` tells a prompt's length.

    Raises `UserError` when sizes are not as many as lengths, or more than there are numbers of a length.
    """

    lengths: list[Length] = Field(default=[3, 6], min_length=1)
    train_sizes: list[Size] = Field(default=[32, 32])
    """Prompts of each length."""
    evaluation_sizes: list[Size] = Field(default=[32, 32])
    """Held-out prompts of each length."""

    def __post_init__(self) -> None:
        if len({len(self.lengths), len(self.train_sizes), len(self.evaluation_sizes), len(set(self.lengths))}) > 1:
            raise UserError(
                f"task.lengths={self.lengths}: give each once, with a size in task.train_sizes and one in"
                " task.evaluation_sizes"
            )
        for length, train, evaluation in zip(self.lengths, self.train_sizes, self.evaluation_sizes, strict=True):
            if train + evaluation > 10**length:
                raise UserError(
                    f"task.lengths={self.lengths}: there are {10**length} numbers of {length} digits, and task."
                    f"train_sizes and task.evaluation_sizes ask for {train + evaluation}"
                )
        for key in ("train_sizes", "evaluation_sizes"):
            if not any(getattr(self, key)):
                raise UserError(f"task.{key}={getattr(self, key)}: ask for at least one prompt")

    def columns(self) -> frozenset[str]:
        """Offer the answer and the number of digits."""
        return frozenset({"answer", "digits"})

    def load(self, seed: int) -> Examples:
        """Distinct numbers."""
        train: list[Example] = []
        evaluation: list[Example] = []
        for length, held_out in zip(self.lengths, self.evaluation_sizes, strict=True):
            examples = [_example(number, length) for number in self._numbers(seed, length)]
            evaluation += examples[:held_out]
            train += examples[held_out:]
        return Examples(train=tuple(train), evaluation=tuple(evaluation))

    def demonstrations(self, seed: int, count: int) -> tuple[tuple[str, str], ...]:
        """`count` pairs of prompt and answer of the first length, none of them held out; one may come twice.

        Raises `UserError` when all are held out.
        """
        length = self.lengths[0]
        if self.evaluation_sizes[0] >= 10**length:
            raise UserError(
                f"task.evaluation_sizes={self.evaluation_sizes}: all numbers of {length} digits are held out, which"
                " leaves none to demonstrate; hold out fewer, or set warm_start=none"
            )
        held_out = set(self._numbers(seed, length)[: self.evaluation_sizes[0]])
        rng = random.Random(f"{seed}-ladder-demonstrations")
        drawn = iter(lambda: rng.randrange(10**length), None)
        allowed = (number for number in drawn if number not in held_out)
        examples = [_example(number, length) for number, _ in zip(allowed, range(count), strict=False)]
        return tuple((example.text, example.answer or "") for example in examples)

    def _numbers(self, seed: int, length: int) -> list[int]:
        place = self.lengths.index(length)
        wanted = self.train_sizes[place] + self.evaluation_sizes[place]
        return random.Random(f"{seed}-ladder-{length}").sample(range(10**length), wanted)


def _example(number: int, length: int) -> Example:
    digits = f"{number:0{length}d}"
    return Example(f"sort {digits}:", "".join(sorted(digits)), {"digits": length})
