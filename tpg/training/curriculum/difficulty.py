"""Prompts by how hard they are: the easy ones first, or those whose groups are likely to be mixed."""

import math
import reprlib
from collections.abc import Collection
from typing import Any

import torch
from pydantic import Field
from torch import Tensor

from tpg.component import component
from tpg.errors import UserError
from tpg.method import Method
from tpg.randomness import Purpose, key, permutation, uniforms
from tpg.rollouts.engine import Prefix, RolloutOptions
from tpg.tasks.base import Example
from tpg.tasks.rendering import Rendered
from tpg.training.curriculum.base import Curriculum, Draws, More, Settled, check_column
from tpg.training.curriculum.estimates import Estimates
from tpg.training.curriculum.groups import Groups

TIES, POOL, LOTTERY = 1, 2, 3
"""What each random order of rows is for, beside the one in which all prompts come."""


@component
class Measured(Curriculum):
    """A curriculum that keeps an estimate of every prompt's success rate."""

    prior: float = Field(default=0.5, ge=0, le=1)
    """The success rate of a prompt that was not tried yet; it counts as one response."""
    decay: float = Field(default=0.5, ge=0, le=1)
    """What a prompt's older responses count for when it is tried again."""

    @property
    def known_ahead(self) -> bool:
        """No: what was measured decides."""
        return False

    def settle(self, draws: Draws, first: Groups, more: More) -> Settled:
        """Learn from all, and remember how they went."""
        estimates = _estimates(draws)
        rows = [prefix.row for prefix in first.prefixes]
        metrics = {"curriculum/expected_success": float(estimates.rates(self.prior)[rows].mean())}
        return Settled(
            first, first, metrics=metrics, state=estimates.after(first, self.success_reward, self.decay).state
        )


@component
class DifficultyOrdered(Measured):
    """Draws from the easiest prompts first, and from more of them in every iteration until all are open.

    The share that is open rises linearly from `start_share` to 1 in `iterations_to_all` iterations; within it prompts
    are drawn evenly. (Competence-based curriculum, arXiv 1903.09848.)
    """

    column: str | None = None
    """The task's column that holds each prompt's difficulty, a number, the largest for the hardest; null: the success
    rate as it is measured."""
    start_share: float = Field(default=0.25, gt=0, le=1)
    iterations_to_all: int = Field(default=100, ge=1)

    @property
    def known_ahead(self) -> bool:
        """Whether a column decides."""
        return self.column is not None

    def check(self, key: str, method: Method, rollout: RolloutOptions, columns: Collection[str]) -> None:
        """Refuse a column that there is not."""
        super().check(key, method, rollout, columns)
        if self.column is not None:
            check_column(f"{key}.column", self.column, columns)

    def check_prompts(self, key: str, prompts: Rendered) -> None:
        """Raise `UserError` where a difficulty is no number."""
        for example in prompts.examples if self.column is not None else ():
            if not math.isfinite(self._difficulty(example)):
                raise UserError(
                    f"{key}.column={self.column}: the prompt {reprlib.repr(example.text)} has no finite number there"
                )

    def prompts(self, draws: Draws) -> list[Prefix]:
        """Draw evenly from those that are open, none twice before all have come."""
        seed, iteration = draws.stream.seed, draws.iteration
        hardness_N = self._hardness(draws)
        size = len(hardness_N)
        pool = by_hardness(hardness_N, permutation(size, seed, Purpose.PROMPT_ORDER, 0, TIES))
        pool = pool[: math.ceil(self.open_share(iteration) * size)]
        order = permutation(len(pool), seed, Purpose.PROMPT_ORDER, iteration, POOL)
        rows = [pool[order[i % len(pool)]] for i in range(draws.rollout.prompts)]
        return draws.stream.of_rows(rows, iteration, draws.rollout)

    def settle(self, draws: Draws, first: Groups, more: More) -> Settled:
        """As measured, or without it by a column."""
        share = {"curriculum/open_share": self.open_share(draws.iteration)}
        if self.column is not None:
            return Settled(first, first, metrics=share)
        settled = super().settle(draws, first, more)
        return Settled(first, first, metrics={**settled.metrics, **share}, state=settled.state)

    def open_share(self, iteration: int) -> float:
        """The share of prompts that iteration 1, 2, ... draws from."""
        way = min(1.0, (iteration - 1) / self.iterations_to_all)
        return self.start_share + (1.0 - self.start_share) * way

    def _hardness(self, draws: Draws) -> Tensor:
        if self.column is None:
            return -_estimates(draws).rates(self.prior)
        values = [self._difficulty(example) for example in draws.stream.prompts.examples]
        return torch.tensor(values, dtype=torch.float64)

    def _difficulty(self, example: Example) -> float:
        """What the column says; NaN where that is no number."""
        value: Any = {"answer": example.answer, **example.columns}[self.column or ""]
        try:
            return float(value)
        except (TypeError, ValueError):
            return math.nan


@component
class DifficultyBalanced(Measured):
    """Draws prompts by how likely it is that their groups are mixed, as far as their success rates are known.

    A prompt that is solved at rate p has the chance `1 - p^G - (1 - p)^G` of a mixed group; those of the others are
    lost. No prompt comes twice in an iteration before all have. What is maximised is the mean reward over prompts so
    drawn, not over all of them evenly.
    """

    explore: float = Field(default=0.1, ge=0, le=1)
    """The share of chances that is dealt out evenly, so that no prompt is forgotten."""

    def prompts(self, draws: Draws) -> list[Prefix]:
        """Draw without replacement, each by its chance."""
        rates_N = _estimates(draws).rates(self.prior)
        chances_N = self.chances(rates_N, draws.rollout.responses_per_prompt)
        lots_N = uniforms([key(draws.stream.seed, Purpose.PROMPT_ORDER, draws.iteration, LOTTERY)], len(chances_N))[0]
        order = drawn_by_chance(chances_N, lots_N)
        rows = [order[i % len(order)] for i in range(draws.rollout.prompts)]
        return draws.stream.of_rows(rows, draws.iteration, draws.rollout)

    def chances(self, rates_N: Tensor, group: int) -> Tensor:
        """The chance of every prompt to be drawn next, (N,), summing to 1."""
        mixed_N = 1.0 - rates_N**group - (1.0 - rates_N) ** group
        even_N = torch.full_like(mixed_N, 1.0 / len(mixed_N))
        if not mixed_N.any():
            return even_N
        return self.explore * even_N + (1.0 - self.explore) * mixed_N / mixed_N.sum()


def by_hardness(hardness_N: Tensor, ties: list[int]) -> list[int]:
    """Rows from the least hard on; equally hard ones in the order in which `ties` names them."""
    order = torch.tensor(ties)
    rows: list[int] = order[hardness_N[order].argsort(stable=True)].tolist()
    return rows


def drawn_by_chance(chances_N: Tensor, lots_N: Tensor) -> list[int]:
    """All rows in the order of drawing without replacement, each next one with chances in proportion.

    An exponential waiting time a row, from numbers in [0, 1), as long as its chance is small.
    """
    rows: list[int] = (-torch.log1p(-lots_N) / chances_N).argsort(stable=True).tolist()
    return rows


def _estimates(draws: Draws) -> Estimates:
    return Estimates.of(draws.state, len(draws.stream.prompts.token_ids))
