"""A secret word that only the reward tells: easy prompts show the beginning of it, hard ones nothing."""

import random
from typing import Annotated

from pydantic import Field

from tpg.component import component
from tpg.errors import UserError
from tpg.tasks.base import Example, Examples, Task

Count = Annotated[int, Field(ge=1, le=18)]
Size = Annotated[int, Field(ge=0)]


@component
class Secret(Task):
    """Prompts for one word, drawn from the seed, with its last letters hidden; the column `hidden` tells how many.

    A guess of n letters is right once in `len(letters) ** n` times, and far more often once the word is half known.
    Raises `UserError` when sizes are not as many as there are counts of hidden letters, or nothing is asked for.
    """

    letters: str = Field(default="abcdefghij", min_length=2)
    hidden: list[Count] = Field(default=[3], min_length=1)
    """How many letters prompts hide, at the word's end; the word has the most of them."""
    train_sizes: list[Size] = Field(default=[256])
    """Prompts for each count."""
    evaluation_sizes: list[Size] = Field(default=[64])
    """Held-out prompts for each count."""

    def __post_init__(self) -> None:
        if len(set(self.letters)) < len(self.letters):
            raise UserError(f"task.letters={self.letters}: give each once")
        if len({len(self.hidden), len(self.train_sizes), len(self.evaluation_sizes), len(set(self.hidden))}) > 1:
            raise UserError(
                f"task.hidden={self.hidden}: give each once, with a size in task.train_sizes and one in"
                " task.evaluation_sizes"
            )
        for key in ("train_sizes", "evaluation_sizes"):
            if not any(getattr(self, key)):
                raise UserError(f"task.{key}={getattr(self, key)}: ask for at least one prompt")

    def columns(self) -> frozenset[str]:
        """Offer the answer and how many letters of it are hidden."""
        return frozenset({"answer", "hidden"})

    def load(self, seed: int) -> Examples:
        """The held-out prompts have the first numbers, those to train on the next."""
        word = self._word(random.Random(f"{seed}-secret"))
        train: list[Example] = []
        evaluation: list[Example] = []
        for hidden, wanted, held_out in zip(self.hidden, self.train_sizes, self.evaluation_sizes, strict=True):
            examples = [
                Example(_prompt(word, hidden, number), word, {"hidden": hidden})
                for number in range(1, held_out + wanted + 1)
            ]
            evaluation += examples[:held_out]
            train += examples[held_out:]
        return Examples(train=tuple(train), evaluation=tuple(evaluation))

    def demonstrations(self, seed: int, count: int) -> tuple[tuple[str, str], ...]:
        """`count` pairs of a prompt and a guess, each for a word of its own; none has the number of a held-out one."""
        rng = random.Random(f"{seed}-secret-demonstrations")
        pairs: list[tuple[str, str]] = []
        for _ in range(count):
            place = rng.randrange(len(self.hidden))
            number = self.evaluation_sizes[place] + 1 + rng.randrange(max(1, self.train_sizes[place]))
            word = self._word(rng)
            pairs.append((_prompt(word, self.hidden[place], number), word))
        return tuple(pairs)

    def _word(self, rng: random.Random) -> str:
        return "".join(rng.choice(self.letters) for _ in range(max(self.hidden)))


def _prompt(word: str, hidden: int, number: int) -> str:
    return f"{word[: len(word) - hidden]}{'_' * hidden} {number}:"
