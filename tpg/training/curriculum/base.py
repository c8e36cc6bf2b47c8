"""What a curriculum is."""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tpg.component import component
from tpg.errors import UserError
from tpg.method import Method
from tpg.policies.base import Policy
from tpg.rollouts.engine import Prefix, RolloutOptions
from tpg.tasks.rendering import Rendered
from tpg.training.curriculum.groups import Groups
from tpg.training.prompts import PromptStream

More = Callable[[Sequence[Prefix]], Groups]
"""Generates and scores further prompts of the iteration, by all processes together."""


@dataclass(frozen=True, eq=False)
class Draws:
    """What the prompts of one iteration are drawn from."""

    stream: PromptStream
    rollout: RolloutOptions
    policy: Policy
    iteration: int
    state: Mapping[str, Any]
    """What the iteration before has left; empty in the first."""


@dataclass(frozen=True, eq=False)
class Settled:
    """What an iteration learns from, and what it has seen for that."""

    groups: Groups
    """As many as `rollout.prompts`."""
    drawn: Groups
    """All prompts as they were drawn, before any was left out or given a hint."""
    unused_tokens: int = 0
    """Generated for responses that are not learned from."""
    metrics: dict[str, float] = field(default_factory=dict)
    state: dict[str, Any] = field(default_factory=dict)
    """For the next iteration: numbers and tensors, which a checkpoint holds."""


@component
class Curriculum:
    """Which prompts an iteration draws, and which of their groups it learns from.

    What it decides is a function of the seed, the iteration, the state it has left and the rewards of all processes.
    """

    success_reward: float = 1.0
    """A response whose reward reaches this counts as solved."""
    mask_truncated: bool = False
    """Whether responses cut at the length limit are left out of the loss; their group's baseline keeps them. (DAPO,
    arXiv 2503.14476.)"""

    @property
    def known_ahead(self) -> bool:
        """Whether an iteration's prompts depend on its number alone, so that they can be generated ahead."""
        return True

    @property
    def hint_levels(self) -> list[str]:
        """As metrics name them; none without hints."""
        return []

    def check(self, key: str, method: Method, rollout: RolloutOptions, columns: Collection[str]) -> None:
        """Raise `UserError`, which begins with `key`, for what this cannot go with."""
        if rollout.lag and not self.known_ahead:
            raise UserError(
                f"{key}: {type(self).__name__} decides by the rewards which prompts are generated, and rollout.lag="
                f"{rollout.lag} generates them before there are any; use rollout.lag=0"
            )
        if self.mask_truncated and method.objective.needs_groups:
            raise UserError(
                f"{key}.mask_truncated=true: objective {type(method.objective).__name__} compares responses with one"
                " another, so that none can be left out alone; use reward_model=[...,overlong]"
            )

    def warnings(self, method: Method) -> Iterator[str]:
        """Tell what the user should know of its effect, a line each."""
        yield from ()

    def check_prompts(self, key: str, prompts: Rendered) -> None:
        """Raise `UserError`, which begins with `key`, for a prompt that lacks what this reads."""

    def prompts(self, draws: Draws) -> list[Prefix]:
        """What the iteration generates first."""
        return draws.stream.draw(draws.iteration, draws.rollout)

    def settle(self, draws: Draws, first: Groups, more: More) -> Settled:
        """What is learned from, once these are scored."""
        return Settled(first, first)


@component
class NoCurriculum(Curriculum):
    """All prompts in a random order, each once before any comes again."""


def check_column(key: str, column: str, columns: Collection[str]) -> None:
    """Raise `UserError` for a column that the task does not offer."""
    if column not in columns:
        offers = ", ".join(sorted(columns)) or "none"
        raise UserError(f"{key}={column}: the task does not offer this column; it offers: {offers}")
