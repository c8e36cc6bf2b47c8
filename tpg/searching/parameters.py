"""What a search varies: ranges of numbers and lists of choices, each for one override of tpg.train."""

import json
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, TypeAlias

from pydantic import Field, StrictBool, StrictFloat, StrictInt

from tpg.component import component
from tpg.errors import UserError

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

Value: TypeAlias = StrictBool | StrictInt | StrictFloat | str | None


@component
class Parameter(ABC):
    """Values that a key or a group may take."""

    @abstractmethod
    def distribution(self) -> "BaseDistribution":
        """As Optuna knows it."""

    @abstractmethod
    def corners(self) -> list[Value]:
        """The values that are checked before the first trial: both ends of a range, every choice."""

    @abstractmethod
    def grid(self, key: str) -> list[Value]:
        """Every value that a grid visits. Raises `UserError` where there is no end of them."""

    @abstractmethod
    def check(self, key: str) -> None:
        """Raise `UserError` for values that cannot go together."""


@component
class Float(Parameter):
    """Numbers from `low` to `high`, both included; uniform in the logarithm with `log`."""

    low: float
    high: float
    log: bool = False
    points: int | None = Field(default=None, ge=2)
    """How many evenly spaced values a grid visits."""

    def distribution(self) -> "BaseDistribution":
        """Optuna's FloatDistribution."""
        from optuna.distributions import FloatDistribution

        return FloatDistribution(self.low, self.high, log=self.log)

    def corners(self) -> list[Value]:
        """Both ends."""
        return [self.low, self.high]

    def grid(self, key: str) -> list[Value]:
        """`points` values from end to end."""
        if self.points is None:
            raise UserError(f"{key}: a grid needs points=..., the number of values to visit")
        shares = [i / (self.points - 1) for i in range(1, self.points - 1)]
        if self.log:
            inner = [self.low * (self.high / self.low) ** share for share in shares]
        else:
            inner = [self.low + (self.high - self.low) * share for share in shares]
        return [self.low, *inner, self.high]

    def check(self, key: str) -> None:
        """Refuse an empty range, and a logarithm of what has none."""
        _check_range(key, self.low, self.high, self.log)


@component
class Int(Parameter):
    """Whole numbers `low`, `low + step`, ... up to `high`; uniform in the logarithm with `log`."""

    low: int
    high: int
    step: int = Field(default=1, ge=1)
    log: bool = False

    def distribution(self) -> "BaseDistribution":
        """Optuna's IntDistribution."""
        from optuna.distributions import IntDistribution

        return IntDistribution(self.low, self.high, log=self.log, step=self.step)

    def corners(self) -> list[Value]:
        """The first and the last."""
        return [self.low, self.high]

    def grid(self, key: str) -> list[Value]:
        """All of them."""
        return list(range(self.low, self.high + 1, self.step))

    def check(self, key: str) -> None:
        """Refuse an empty range, steps that miss its end, and steps on a logarithmic one."""
        _check_range(key, self.low, self.high, self.log)
        if self.log and self.step != 1:
            raise UserError(f"{key}.step={self.step}: a logarithmic range has no step")
        if (self.high - self.low) % self.step:
            raise UserError(f"{key}.step={self.step}: does not lead from low={self.low} to high={self.high}")


@component
class Categorical(Parameter):
    """One of a list: values of a key, options of a group (`algorithm: [grpo, rloo]`) or lists (`[[a], [a, b]]`)."""

    values: list[Value | list[Value]] = Field(min_length=1)

    def distribution(self) -> "BaseDistribution":
        """Optuna's CategoricalDistribution."""
        from optuna.distributions import CategoricalDistribution

        return CategoricalDistribution(self.corners())

    def corners(self) -> list[Value]:
        """All of them; a list as its text."""
        return [written(value) if isinstance(value, list) else value for value in self.values]

    def grid(self, key: str) -> list[Value]:
        """All of them."""
        return self.corners()

    def check(self, key: str) -> None:
        """Refuse a value that is listed twice."""
        texts = [json.dumps(value) for value in self.corners()]
        for text in texts:
            if texts.count(text) > 1:
                raise UserError(f"{key}.values: {text} is listed twice")


def _check_range(key: str, low: float, high: float, log: bool) -> None:
    if low >= high:
        raise UserError(f"{key}.low={low:g}: should be less than high={high:g}")
    if log and low <= 0:
        raise UserError(f"{key}.low={low:g}: a logarithmic range begins above 0")


def override(key: str, value: Any) -> str:
    """What gives a key this value on the command line."""
    return f"{key}={written(value)}"


def written(value: Any) -> str:
    """A value as Hydra reads it."""
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    if isinstance(value, list):
        return f"[{','.join(written(entry) for entry in value)}]"
    if isinstance(value, str) and not (value.startswith("[") or _plain(value)):
        return "'" + value.replace("\\", "\\\\").replace("'", "\\'") + "'"
    return str(value)


def _plain(text: str) -> bool:
    return bool(text) and all(letter.isalnum() or letter in "_-./" for letter in text)
