"""A task: two disjoint lists of examples, both functions of the seed."""

import random
import string

from pydantic import Field

from tpg.component import component
from tpg.tasks.base import Example, Examples, Task


@component
class Reverse(Task):
    """Words of random letters, to be written backwards."""

    letters: int = Field(default=5, ge=4, le=20)
    train_size: int = Field(default=512, ge=1)
    evaluation_size: int = Field(default=64, ge=1)

    def columns(self) -> frozenset[str]:
        """What rewards may read beside prompt and response; the columns of each example's `columns` as well."""
        return frozenset({"answer"})

    def load(self, seed: int) -> Examples:
        """Distinct words; the first ones are held out."""
        drawn = random.Random(f"{seed}-reverse")
        words: dict[str, None] = {}
        while len(words) < self.train_size + self.evaluation_size:
            words["".join(drawn.choices(string.ascii_lowercase, k=self.letters))] = None
        examples = tuple(Example(f"reverse {word}:", answer=word[::-1]) for word in words)
        return Examples(train=examples[self.evaluation_size :], evaluation=examples[: self.evaluation_size])
