"""Guards: bounds on an iteration's metrics, and when one is crossed long enough to speak."""

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from pydantic import Field

from tpg.component import component
from tpg.errors import UserError

PLACEHOLDER = "{term}"
"""In a guard's metric: each term of a reward of several, by its name."""

Event = Literal["began", "stopped", "ended"]
"""What a guard says: that its bound is crossed, that the run ends for it, that the metric is back."""


class GuardStop(UserError):  # noqa: N818
    """A guard with `action: stop` ended the run; a checkpoint stands."""


@component
class Guard:
    """A bound on a metric of the iterations. It is crossed above `above` and below `below`; NaN is no measurement."""

    metric: str
    above: float | None = None
    below: float | None = None
    share_of: Literal["first", "responses"] | None = None
    """What the bound is a share of: the metric's first value in the run, or an iteration's number of responses."""
    patience: int = Field(default=1, ge=1)
    """Measurements in a row beyond the bound before the guard speaks."""
    action: Literal["warn", "stop"] = "warn"
    remedy: str = ""
    """What to change; said with the warning."""

    def check(self, key: str) -> None:
        """Raise `UserError` that begins with `key` for a guard without a bound, or whose bounds admit no value."""
        if self.above is None and self.below is None:
            raise UserError(f"{key}: has no bound; set {key}.above or {key}.below")
        if self.above is not None and self.below is not None and self.below > self.above:
            raise UserError(f"{key}.below={self.below:g}: no value is between it and above={self.above:g}")

    def crossed(self, value: float, whole: float) -> str:
        """How the value is beyond the bound, in words; empty if it is not. `whole` is what bounds are shares of."""
        if self.above is not None and value > self.above * whole:
            return f"above {self._told(self.above, whole)}"
        if self.below is not None and value < self.below * whole:
            return f"below {self._told(self.below, whole)}"
        return ""

    def _told(self, bound: float, whole: float) -> str:
        of = {"first": f" of its first, {whole:.4g}", "responses": f" of {whole:g} responses", None: ""}
        return f"{bound:g}{of[self.share_of]}"


@dataclass
class Watch:
    """A guard's state from iteration to iteration; a function of the guard and of the metric's values so far."""

    guard: Guard
    responses: int
    """Of an iteration."""
    first: float | None = None
    streak: int = 0
    """Measurements beyond the bound up to the latest."""
    said: str = ""
    """How the latest value is beyond the bound; empty if it is not."""

    @property
    def stands(self) -> bool:
        """Whether the bound has been crossed for as long as the guard's patience."""
        return self.streak >= self.guard.patience

    def see(self, value: float | None) -> Event | None:
        """Take in an iteration's value, None where it was not measured; what there is to say of it."""
        if value is None or math.isnan(value):
            return None
        self.first = value if self.first is None else self.first
        whole = {"first": self.first, "responses": float(self.responses), None: 1.0}[self.guard.share_of]
        stood = self.stands
        self.said = self.guard.crossed(value, whole)
        self.streak = self.streak + 1 if self.said else 0
        if self.stands and self.guard.action == "stop":
            return "stopped"
        if self.stands != stood:
            return "began" if self.stands else "ended"
        return None


def for_each_term(guards: Mapping[str, Guard], terms: Collection[str]) -> dict[str, Guard]:
    """The guards, those of `{term}`'s metrics once for each term, as `guard/term`: not for one that is alone."""
    several = terms if len(terms) > 1 else ()
    found: dict[str, Guard] = {}
    for name, guard in guards.items():
        if PLACEHOLDER in guard.metric:
            found |= {
                f"{name}/{term}": replace(guard, metric=guard.metric.replace(PLACEHOLDER, term)) for term in several
            }
        else:
            found[name] = guard
    return found


def watches(guards: Mapping[str, Guard], responses: int, rows: list[dict[str, str]]) -> dict[str, Watch]:
    """Every guard's state after the iterations that the rows of metrics.csv tell of."""
    found = {name: Watch(guard, responses) for name, guard in guards.items()}
    for row in rows:
        for watch in found.values():
            text = row.get(watch.guard.metric)
            watch.see(float(text) if text else None)
    return found


def record(name: str, watch: Watch, event: Event, iteration: int, value: float) -> dict[str, Any]:
    """An event as guards.jsonl keeps it."""
    metric = watch.guard.metric
    if event == "ended":
        told = f"{metric} {value:.4g} is within its bound again"
    else:
        several = "" if watch.guard.patience == 1 else f" for {watch.streak} iterations"
        told = f"{metric} {value:.4g} is {watch.said}{several}"
    return {
        "iteration": iteration,
        "guard": name,
        "event": event,
        "metric": metric,
        "value": value,
        "told": told,
        "remedy": watch.guard.remedy,
    }
