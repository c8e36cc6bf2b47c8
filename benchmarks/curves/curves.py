"""What a run learned over time, and when it had learned enough."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from statistics import median
from typing import Any


@dataclass
class Curve:
    """One side's run, iteration by iteration."""

    side: str
    seed: int
    target: float
    window: int
    seconds: list[float] = field(default_factory=list)
    """Since the first iteration began, at the end of each: generation, rewards and update, nothing else."""
    reward: list[float] = field(default_factory=list)
    """Mean of the iteration's responses, before its update."""
    solved: list[float] = field(default_factory=list)
    """Share of the iteration's responses with reward 1."""
    tokens: int = 0
    error: str | None = None

    def add(self, told: dict[str, Any]) -> None:
        """An iteration."""
        self.seconds.append((self.seconds[-1] if self.seconds else 0.0) + told["seconds"])
        self.reward.append(told["reward"])
        self.solved.append(told["solved"])
        self.tokens += told["tokens"]

    @property
    def reached_at(self) -> int | None:
        """The iteration (1, 2, ...) at whose end the running mean first is at the target; None if it never is."""
        for end in range(self.window, len(self.reward) + 1):
            if sum(self.reward[end - self.window : end]) / self.window >= self.target - 1e-9:
                return end
        return None

    def finished(self, iterations: int, minutes: float) -> bool:
        """Whether there is nothing more to be done."""
        spent = self.seconds[-1] if self.seconds else 0.0
        over = len(self.reward) >= iterations or spent >= 60 * minutes
        return self.error is not None or over or self.reached_at is not None

    def told(self) -> dict[str, Any]:
        """As it stands in learning.json; `seconds_to_target` is null where the target was not reached."""
        at = self.reached_at
        return {
            **asdict(self),
            "iterations": len(self.reward),
            "iterations_to_target": at,
            "seconds_to_target": None if at is None else self.seconds[at - 1],
        }


def summary(runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Medians of each side over its seeds and TRL's over ours; a run that does not get there counts as infinitely long.

    A median that is not finite, and a ratio with one, is null.
    """
    found: dict[str, Any] = {}
    for side in dict.fromkeys(run["side"] for run in runs):
        own = [run for run in runs if run["side"] == side]
        times = [math.inf if run["seconds_to_target"] is None else run["seconds_to_target"] for run in own]
        steps = [math.inf if run["iterations_to_target"] is None else run["iterations_to_target"] for run in own]
        paces = [run["seconds"][-1] / run["iterations"] for run in own if run["iterations"]]
        found[side] = {
            "runs": len(own),
            "reached": sum(math.isfinite(seconds) for seconds in times),
            "seconds_to_target": _finite(median(times)),
            "iterations_to_target": _finite(median(steps)),
            "seconds_per_iteration": median(paces) if paces else None,
        }
    for name in ("seconds_to_target", "seconds_per_iteration"):
        one, other = (found.get(side, {}).get(name) for side in ("trl", "ours"))
        found[f"ratio_{name}"] = one / other if one and other else None
    return found


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
