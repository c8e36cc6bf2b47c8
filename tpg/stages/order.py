"""Which rows of the data a step is made on."""

import math
from dataclasses import dataclass
from functools import lru_cache

from tpg.randomness import Purpose, permutation


@dataclass(frozen=True)
class Order:
    """Every row once an epoch in a random order, a function of seed and epoch; an epoch's last step may have fewer."""

    rows: int
    per_step: int
    epochs: int
    seed: int

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps."""
        return math.ceil(self.rows / self.per_step)

    @property
    def steps(self) -> int:
        """In all."""
        return self.epochs * self.steps_per_epoch

    def of(self, step: int) -> list[int]:
        """The rows of step 1, 2, ..."""
        epoch, place = divmod(step - 1, self.steps_per_epoch)
        return _permuted(self.rows, self.seed, epoch)[place * self.per_step : (place + 1) * self.per_step]

    def epochs_done(self, step: int) -> float:
        """Passes over the data by the end of a step."""
        epoch, place = divmod(step, self.steps_per_epoch)
        return epoch + min(1.0, place * self.per_step / self.rows)

    def measures(self, step: int, every: int | None) -> bool:
        """Whether the held-out rows are looked at after a step: each `every` steps, or each epoch; and at the end."""
        return step % (every or self.steps_per_epoch) == 0 or step == self.steps


@lru_cache(maxsize=2)
def _permuted(rows: int, seed: int, epoch: int) -> list[int]:
    return permutation(rows, seed, Purpose.PROMPT_ORDER, epoch)
