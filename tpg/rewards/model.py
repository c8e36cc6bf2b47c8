"""The reward: named terms, scored and combined."""

import math
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

from tpg.errors import UserError
from tpg.rewards.base import Failure, LoadedTerm, RewardTerm, Sample, Scorer, Term, Told, go_on, values_of
from tpg.rewards.combination import Combination, WeightedSum
from tpg.rewards.files import digest
from tpg.rewards.workers import LARGEST, Job, Workers

FILES = "what files held"
"""In a state beside the terms, none of which has such a name."""
Seen = dict[str, list[float]]
"""What terms that learn have seen in an iteration."""


@dataclass(frozen=True)
class Pending:
    """A sample that is being scored."""

    sample: Sample
    jobs: Sequence[Job]
    """One for each term that worker processes score."""
    begun: Mapping[str, Any]
    """What each loaded term has begun."""


@dataclass(frozen=True)
class Rewards:
    """What a reward model says of a list of samples, in their order."""

    total: list[float]
    """The terms combined; NaN where unscored."""
    scored: list[bool]
    """Whether every term that counts for it has a value."""
    terms: dict[str, list[float]]
    """Each term's values before its weight; NaN where the term failed."""
    failures: dict[str, dict[str, int]]
    """How often a term failed, by reason (`Reason`); only terms that did."""
    first_failure: dict[str, str]
    """The cause of each failing term's first failure, in one line."""
    told: dict[str, Told] = field(default_factory=dict)
    """What loaded terms tell of themselves, as `<term>/<name>`."""

    @property
    def metrics(self) -> dict[str, float]:
        """The same as numbers."""
        return values_of(self.told)


def load_scorers(terms: Mapping[str, Term], group: str = "reward_model") -> dict[str, Scorer]:
    """Load those that the process that trains is to hold. Raises `UserError` where one is not to be had."""
    loaded: dict[str, Scorer] = {}
    try:
        for name, term in terms.items():
            if isinstance(term, LoadedTerm):
                loaded[name] = term.load(f"{group}.{name}")
    except BaseException:
        for scorer in loaded.values():
            scorer.close()
        raise
    return loaded


class RewardModel:
    """Scores complete responses: functions in `workers` processes of at most `memory_gb`, loaded terms here.

    The processes start at the first call. A response for which a term raises, overstays its time-out, gives no finite
    number, needs too much memory or ends its process is unscored, unless the term counts for nothing (weight 0, a shut
    gate); it costs no other response its reward. Threads may share a model. Raises `UserError` when there is no term.
    """

    def __init__(
        self,
        terms: Mapping[str, Term],
        workers: int,
        memory_gb: float | None = None,
        combination: Combination | None = None,
        scorers: Mapping[str, Scorer] | None = None,
    ) -> None:
        if not terms:
            raise UserError("reward_model has no term; choose one or more, for example reward_model=[exact_answer]")
        self.terms = dict(terms)
        self.combination = combination or WeightedSum()
        self._functions = [name for name, term in terms.items() if isinstance(term, RewardTerm)]
        self._scorers = load_scorers(terms) if scorers is None else scorers
        functions = [term for term in terms.values() if isinstance(term, RewardTerm)]
        self._workers = Workers(functions, workers, memory_gb)
        self._files = {
            f"{name}.{key}": (path, digest(path)) for name, term in terms.items() for key, path in term.files().items()
        }
        """By key, with a digest of what each held as this began."""
        self._seen: dict[int, Seen] = {}
        """By iteration."""
        self._on_wait: Callable[[], None] = go_on

    def interrupt_with(self, check: Callable[[], None]) -> None:
        """Call this about every second while rewards are waited for; what it raises ends the wait."""
        self._on_wait = check
        for scorer in self._scorers.values():
            scorer.on_wait = check

    def score(self, samples: Sequence[Sample], iteration: int | None = None) -> Rewards:
        """Give every term's value for every sample, and what they come to."""
        return self.collect(self.submit(samples), iteration)

    def submit(self, samples: Sequence[Sample]) -> list[Pending]:
        """Begin to score samples, each by itself; returns at once."""
        jobs, count = self._workers.submit(samples), len(self._functions)
        return [
            Pending(
                sample,
                jobs[place * count : (place + 1) * count],
                {name: scorer.begin(sample) for name, scorer in self._scorers.items()},
            )
            for place, sample in enumerate(samples)
        ]

    def collect(self, pending: Sequence[Pending], iteration: int | None = None) -> Rewards:
        """Wait for samples that were submitted, in whatever order; the same as `score` of them in this order.

        In an iteration of training the terms are combined as the run's combination says; without one, where responses
        are judged and not compared, by their last weights.
        """
        outcomes = self._outcomes(pending)
        if iteration is not None:
            for name in self._learning:
                self._seen.setdefault(iteration, {}).setdefault(name, []).extend(self._scorers[name].seen())
        values = {
            name: [math.nan if isinstance(outcome, Failure) else outcome for outcome in column]
            for name, column in outcomes.items()
        }
        failures: dict[str, dict[str, int]] = {}
        first_failure: dict[str, str] = {}
        for name, column in outcomes.items():
            failed = [outcome for outcome in column if isinstance(outcome, Failure)]
            if failed:
                failures[name] = dict(Counter(failure.reason for failure in failed))
                first_failure[name] = failed[0].cause
        weights = {name: term.weight for name, term in self.terms.items()}
        samples = [each.sample for each in pending]
        if iteration is None:
            total = self.combination.absolute(values, weights, samples)
        else:
            total = self.combination.rewards(values, weights, samples, iteration)
        total = [reward if abs(reward) <= LARGEST else math.nan for reward in total]
        told = {
            f"{term}/{name}": each for term, scorer in self._scorers.items() for name, each in scorer.metrics().items()
        }
        return Rewards(total, [not math.isnan(reward) for reward in total], values, failures, first_failure, told)

    def learn(self, iteration: int, each: Callable[[Callable[[], Seen]], list[Seen]]) -> None:
        """Close an iteration of training: terms take in what was scored for it, by `each` process of the run."""
        if self._learning:
            found = each(lambda: self._seen.get(iteration, {}))
            for name in self._learning:
                self._scorers[name].learn([value for part in found for value in part.get(name, ())])
            self._seen.clear()

    def state(self) -> dict[str, Any]:
        """What loaded terms carry from one iteration to the next, by term, and what the files held that terms read."""
        states = {name: scorer.state() for name, scorer in self._scorers.items()}
        states[FILES] = {key: held for key, (_, held) in self._files.items()}
        return {name: state for name, state in states.items() if state}

    def restore(self, states: Mapping[str, Any]) -> None:
        """Take back what a checkpoint holds. Raises `UserError` if a file has changed since."""
        for key, held in states.get(FILES, {}).items():
            path, holds = self._files.get(key, (None, held))
            if holds != held:
                raise UserError(
                    f"reward_model.{key}={path}: has changed since the run began, and with it the reward; put back what"
                    " it held, or begin a new run"
                )
        for name, state in states.items():
            if name in self._scorers:
                self._scorers[name].restore(state)

    def to(self, device: str) -> None:
        """Move what is loaded to the device of the process that trains."""
        for scorer in self._scorers.values():
            scorer.to(device)

    def close(self) -> None:
        """End the worker processes, and free what is loaded."""
        self._workers.close()
        for scorer in self._scorers.values():
            scorer.close()

    @property
    def _learning(self) -> list[str]:
        """The loaded terms whose values depend on what was scored before; the same in every process."""
        return [name for name, scorer in self._scorers.items() if scorer.learns]

    def _outcomes(self, pending: Sequence[Pending]) -> dict[str, list[float | Failure]]:
        """Each term's value for every sample, or why there is none, in the order of the terms."""
        loaded = {
            name: scorer.outcomes([each.begun[name] for each in pending]) for name, scorer in self._scorers.items()
        }
        functions = self._workers.outcomes([job for each in pending for job in each.jobs], self._on_wait)
        count = len(self._functions)
        computed = {name: functions[place::count] for place, name in enumerate(self._functions)}
        outcomes = {name: {**loaded, **computed}[name] for name in self.terms}
        return {name: [_checked(outcome) for outcome in column] for name, column in outcomes.items()}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _checked(outcome: float | Failure) -> float | Failure:
    if isinstance(outcome, Failure) or abs(outcome) <= LARGEST:
        return outcome
    return Failure("NaN", f"the value is {outcome}")


def check_terms(terms: Mapping[str, Term], task_columns: Collection[str], group: str = "reward_model") -> None:
    """Raise `UserError` when a term reads a column that the task does not offer, or lacks what it needs itself."""
    for name, term in terms.items():
        for column in sorted(term.required_columns() - set(task_columns)):
            offers = ", ".join(sorted(task_columns)) or "none"
            raise UserError(
                f"{group}.{name} needs the column {column!r}, which the task does not offer; it offers: {offers}"
            )
        term.check(f"{group}.{name}")
