"""A secret word that only the reward tells: easy prompts ask for its first letter, hard ones for all of it."""

import random
from typing import Annotated

from pydantic import Field

from tpg.component import component
from tpg.errors import UserError
from tpg.tasks.base import Example, Examples, Task

Length = Annotated[int, Field(ge=1, le=18)]
Size = Annotated[int, Field(ge=0)]


@component
class Secret(Task):
    """Prompts for the first letters of a word that is drawn from the seed; the column `letters` tells how many.

    A guess of n letters is right once in `len(letters) ** n` times, and far more often once shorter ones are known.
    Raises `UserError` when sizes are not as many as lengths, or nothing is asked for.
    """

    letters: str = Field(default="nesw", min_length=2)
    lengths: list[Length] = Field(default=[1, 2, 3, 4, 5], min_length=1)
    train_sizes: list[Size] = Field(default=[32, 32, 32, 32, 32])
    """Prompts of each length."""
    evaluation_sizes: list[Size] = Field(default=[0, 0, 0, 0, 32])
    """Held-out prompts of each length."""

    def __post_init__(self) -> None:
        if len(set(self.letters)) < len(self.letters):
            raise UserError(f"task.letters={self.letters}: give each once")
        if len({len(self.lengths), len(self.train_sizes), len(self.evaluation_sizes), len(set(self.lengths))}) > 1:
            raise UserError(
                f"task.lengths={self.lengths}: give each once, with a size in task.train_sizes and one in"
                " task.evaluation_sizes"
            )
        for key in ("train_sizes", "evaluation_sizes"):
            if not any(getattr(self, key)):
                raise UserError(f"task.{key}={getattr(self, key)}: ask for at least one prompt")

    def columns(self) -> frozenset[str]:
        """Offer the answer and how many letters it has."""
        return frozenset({"answer", "letters"})

    def load(self, seed: int) -> Examples:
        """The held-out prompts have the first numbers, those to train on the next."""
        word = self._guess(random.Random(f"{seed}-secret"), max(self.lengths))
        train: list[Example] = []
        evaluation: list[Example] = []
        for length, wanted, held_out in zip(self.lengths, self.train_sizes, self.evaluation_sizes, strict=True):
            examples = [
                Example(_prompt(length, number), word[:length], {"letters": length})
                for number in range(1, held_out + wanted + 1)
            ]
            evaluation += examples[:held_out]
            train += examples[held_out:]
        return Examples(train=tuple(train), evaluation=tuple(evaluation))

    def demonstrations(self, seed: int, count: int) -> tuple[tuple[str, str], ...]:
        """`count` pairs of a prompt, none of them held out, and a guess: as many letters as asked for, at random."""
        rng = random.Random(f"{seed}-secret-demonstrations")
        pairs: list[tuple[str, str]] = []
        for _ in range(count):
            place = rng.randrange(len(self.lengths))
            number = self.evaluation_sizes[place] + 1 + rng.randrange(max(1, self.train_sizes[place]))
            pairs.append((_prompt(self.lengths[place], number), self._guess(rng, self.lengths[place])))
        return tuple(pairs)

    def _guess(self, rng: random.Random, length: int) -> str:
        return "".join(rng.choice(self.letters) for _ in range(length))


def _prompt(length: int, number: int) -> str:
    return f"{length} letters, {number}:"
