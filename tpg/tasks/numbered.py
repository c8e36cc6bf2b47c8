"""One prompt again and again, for rewards that look at the response alone."""

from pydantic import Field

from tpg.component import component
from tpg.tasks.base import Example, Examples, Task


@component
class Numbered(Task):
    """The same text with the numbers from 1 on behind it, the last of them held out. There is no answer key."""

    text: str = Field(min_length=1)
    train_size: int = Field(default=256, ge=1)
    evaluation_size: int = Field(default=64, ge=1)

    def columns(self) -> frozenset[str]:
        """Offer nothing."""
        return frozenset()

    def load(self, seed: int) -> Examples:
        """The same with every seed."""
        total = self.train_size + self.evaluation_size
        prompts = tuple(Example(f"{self.text} {number}") for number in range(1, total + 1))
        return Examples(train=prompts[: self.train_size], evaluation=prompts[self.train_size :])
