"""What a check found, and whether that is within its bounds."""

import operator
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

RELATIONS = {"<=": operator.le, ">=": operator.ge, "==": operator.eq}


@dataclass(frozen=True)
class Found:
    """What a check measured, beside what it should be."""

    name: str
    figures: Mapping[str, Any] = field(default_factory=dict)
    bounds: Mapping[str, tuple[str, Any]] = field(default_factory=dict)
    """For figures by name a relation of `RELATIONS` and a number."""
    skipped: str | None = None
    """Why nothing was measured."""

    @property
    def problems(self) -> list[str]:
        """Each bound that does not hold, in words; a figure that is missing or not a number is within none."""
        return [
            f"{name} is {shown(self.figures.get(name))}, should be {relation} {shown(bound)}"
            for name, (relation, bound) in self.bounds.items()
            if self.figures.get(name) is None or not RELATIONS[relation](self.figures[name], bound)
        ]


@dataclass(frozen=True)
class Part:
    """Checks that belong together, and seconds after which those left are skipped."""

    name: str
    seconds: float
    checks: Callable[[Any], Iterator[Found]]
    """Given the part's clock; each is told as soon as it is found."""


def shown(value: Any) -> str:
    """A figure in few characters."""
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "missing"}[value]
    return f"{value:.3g}" if isinstance(value, float) else str(value)
