"""Putting a reward model's values on a scale of their own: less a mean, over a standard deviation."""

import json
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field

from tpg.component import component
from tpg.errors import UserError

FILE = "reward_statistics.json"
"""In a reward model's folder: the mean and standard deviation of its values over reference responses."""


class Normalizer:
    """Turns a model's values into rewards: `(value - mean) / std`, the same for all responses of an iteration."""

    learns: ClassVar[bool] = False
    """Whether `learn` changes what it does."""

    def __init__(self, mean: float = 0.0, std: float = 1.0) -> None:
        self.mean, self.std = mean, std

    def normalized(self, value: float) -> float:
        """One value on the scale."""
        return (value - self.mean) / self.std

    def learn(self, values: Sequence[float]) -> None:
        """Take in the values of one iteration, before they were normalised; of every process."""

    def state(self) -> dict[str, Any]:
        """What a run continues from."""
        return {}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take it back."""


class RunningNormalizer(Normalizer):
    """Mean and standard deviation (n-1) of all values of earlier iterations; values pass as they are in the first."""

    learns: ClassVar[bool] = True

    def __init__(self) -> None:
        super().__init__()
        self.count, self.squares = 0, 0.0
        """How many values were seen, and the sum of their squared distances from the mean."""

    def learn(self, values: Sequence[float]) -> None:
        """Merge the iteration's moments into those so far; sums are exact, so that no order of values matters."""
        if not values:
            return
        count = len(values)
        mean = math.fsum(values) / count
        squares = math.fsum((value - mean) ** 2 for value in values)
        total, far = self.count + count, mean - (self.mean if self.count else mean)
        self.squares += squares + far**2 * self.count * count / total
        self.mean = mean if not self.count else self.mean + far * count / total
        self.count = total
        deviation = math.sqrt(self.squares / (total - 1)) if total > 1 else 0.0
        self.std = deviation or 1.0  # values that are all alike

    def state(self) -> dict[str, Any]:
        """The moments."""
        return {"count": self.count, "mean": self.mean, "squares": self.squares, "std": self.std}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take them back."""
        self.count, self.squares = state["count"], state["squares"]
        self.mean, self.std = state["mean"], state["std"]


@component
class Normalization(ABC):
    """Where the mean and the standard deviation come from."""

    def check(self, key: str, folder: Path | None) -> None:  # noqa: B027
        """Raise `UserError`, which begins with `key`, for what is missing in the model's folder, if that is local."""

    @abstractmethod
    def normalizer(self, key: str, statistics: Callable[[], Path | None]) -> Normalizer:
        """What normalises; `statistics` finds the file that the model comes with, if it has one."""


@component
class Running(Normalization):
    """Of all responses that earlier iterations of the run have scored for training."""

    def normalizer(self, key: str, statistics: Callable[[], Path | None]) -> Normalizer:
        """Begin with none seen."""
        return RunningNormalizer()


@component
class Reference(Normalization):
    """Fixed: as given, or else as `reward_statistics.json` beside the model's weights has them."""

    mean: float | None = None
    std: float | None = Field(default=None, gt=0)

    def check(self, key: str, folder: Path | None) -> None:
        """Refuse one of them alone, and read the file of a local model."""
        if (self.mean is None) != (self.std is None):
            raise UserError(f"{key}.normalization: has only one of mean and std; give both, or neither")
        if folder is not None:
            self.normalizer(key, lambda: folder / FILE)

    def normalizer(self, key: str, statistics: Callable[[], Path | None]) -> Normalizer:
        """Take what is given, or read the file."""
        if self.mean is not None and self.std is not None:
            return Normalizer(self.mean, self.std)
        path = statistics()
        if path is None or not path.is_file():
            raise UserError(
                f"{key}.normalization: the model comes without {FILE}; give normalization.mean and normalization.std,"
                " or take {_target_: tpg.rewards.learned.normalization.Running}"
            )
        return Normalizer(*_read(key, path))


def _read(key: str, path: Path) -> tuple[float, float]:
    try:
        read = json.loads(path.read_text())
        mean, std = float(read["mean"]), float(read["std"])
        if math.isfinite(mean) and 0 < std < math.inf:
            return mean, std
    except (OSError, ValueError, TypeError, KeyError):
        pass
    raise UserError(f'{key}.normalization: {path} is not of the form {{"mean": 0.5, "std": 2.0}}, std above 0')
