"""The reward: a weighted sum of named terms."""

import math
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Self

from tpg.errors import UserError
from tpg.rewards.base import RewardTerm, Sample
from tpg.rewards.workers import LARGEST, Failure, Job, Workers

Pending = list[Job]
"""A sample that is being scored: a job for each term."""


@dataclass(frozen=True)
class Rewards:
    """What a reward model says of a list of samples, in their order."""

    total: list[float]
    """The weighted sum of the terms; NaN where unscored."""
    scored: list[bool]
    """Whether every term has a value."""
    terms: dict[str, list[float]]
    """Each term's values before its weight; NaN where the term failed."""
    failures: dict[str, dict[str, int]]
    """How often a term failed, by reason ('raised', 'timed out', 'NaN', 'process died', 'out of memory'); only terms
    that did."""
    first_failure: dict[str, str]
    """The cause of each failing term's first failure, in one line."""


class RewardModel:
    """Scores complete responses in `workers` processes of at most `memory_gb`, which start at the first call.

    A response for which a term raises, overstays its `timeout_s`, gives no finite number, needs too much memory or ends
    its process is unscored; it costs no other response its reward. Threads may share a model. Raises `UserError` when
    there is no term.
    """

    def __init__(self, terms: Mapping[str, RewardTerm], workers: int, memory_gb: float | None = None) -> None:
        if not terms:
            raise UserError("reward_model has no term; choose one or more, for example reward_model=[exact_answer]")
        self.terms = dict(terms)
        self._workers = Workers(list(terms.values()), workers, memory_gb)

    def score(self, samples: Sequence[Sample]) -> Rewards:
        """Give every term's value for every sample, and their weighted sum."""
        return self.collect(self.submit(samples))

    def submit(self, samples: Sequence[Sample]) -> list[Pending]:
        """Begin to score samples, each by itself; returns at once."""
        jobs, terms = self._workers.submit(samples), len(self.terms)
        return [jobs[start : start + terms] for start in range(0, len(jobs), terms)]

    def collect(self, pending: Sequence[Pending]) -> Rewards:
        """Wait for samples that were submitted, in whatever order; the same as `score` of them in this order."""
        outcomes = self._workers.outcomes([job for jobs in pending for job in jobs])
        values: dict[str, list[float]] = {}
        failures: dict[str, dict[str, int]] = {}
        first_failure: dict[str, str] = {}
        for position, name in enumerate(self.terms):
            column = outcomes[position :: len(self.terms)]
            values[name] = [math.nan if isinstance(outcome, Failure) else outcome for outcome in column]
            failed = [outcome for outcome in column if isinstance(outcome, Failure)]
            if failed:
                failures[name] = dict(Counter(failure.reason for failure in failed))
                first_failure[name] = failed[0].cause
        weights = [term.weight for term in self.terms.values()]
        total = [
            sum(weight * value for weight, value in zip(weights, row, strict=True))
            for row in zip(*values.values(), strict=True)
        ]
        total = [reward if abs(reward) <= LARGEST else math.nan for reward in total]
        return Rewards(total, [not math.isnan(reward) for reward in total], values, failures, first_failure)

    def close(self) -> None:
        """End the worker processes."""
        self._workers.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def check_columns(terms: Mapping[str, RewardTerm], task_columns: Collection[str]) -> None:
    """Raise `UserError` when a term reads a column that the task does not offer."""
    for name, term in terms.items():
        for column in sorted(term.required_columns() - set(task_columns)):
            offers = ", ".join(sorted(task_columns)) or "none"
            raise UserError(
                f"reward_model.{name} needs the column {column!r}, which the task does not offer; it offers: {offers}"
            )
