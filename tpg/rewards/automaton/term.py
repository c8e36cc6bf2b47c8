"""The reward terms `automaton` and `automaton_adaptive`."""

from collections.abc import Mapping, Sequence
from dataclasses import fields
from functools import cached_property
from pathlib import Path
from typing import Any

from pydantic import Field

from tpg.component import component
from tpg.errors import UserError
from tpg.rewards.automaton.machine import Automaton
from tpg.rewards.automaton.reading import KEYS, automaton_of, read_automaton
from tpg.rewards.base import Failure, LoadedTerm, RewardTerm, Sample, Scorer, Term, Told
from tpg.rewards.workers import Job, Workers


@component
class AutomatonTerm(Term):
    """An automaton from a YAML file, or else given by the keys that such a file has."""

    path: str | None = None
    states: list[Any] = Field(default_factory=list)
    start: Any = None
    accepting: list[Any] = Field(default_factory=list)
    traps: list[Any] = Field(default_factory=list)
    """States that a response fails in for good."""
    events: dict[Any, Any] = Field(default_factory=dict)
    """Each a name and a regular expression (Python's `re`)."""
    transitions: dict[Any, Any] = Field(default_factory=dict)
    """By state and event, the state that it leads to; an event that a state does not name changes nothing."""

    def files(self) -> dict[str, Path]:
        """The automaton's, where it has one."""
        return {} if self.path is None else {"path": Path(self.path).expanduser()}

    def check(self, key: str) -> None:
        """Raise `UserError` for whatever is wrong with the automaton; reads its file."""
        self.read(key)

    def read(self, key: str) -> Automaton:
        """The automaton. Raises `UserError`, which begins with `key`."""
        inline = self.definition()
        if self.path is None:
            return automaton_of(inline, f"{key}.")
        given = [name for name, value in inline.items() if value not in (None, [], {})]
        if given:
            raise UserError(f"{key}.path={self.path}: the file is the automaton; leave out {key}.{given[0]}, or path")
        return read_automaton(self.path, f"{key}.path")

    def definition(self) -> dict[str, Any]:
        """What is given in place of a file."""
        return {field.name: getattr(self, field.name) for field in fields(self) if field.name in KEYS}


@component
class AutomatonProgress(AutomatonTerm, RewardTerm):
    """How far events in the response lead from an automaton's start to acceptance: 0 to 1. (arXiv 2412.10917.)

    Without `partial`, 1 if an accepting state was reached and else 0.
    """

    partial: bool = True

    def __getstate__(self) -> dict[str, Any]:
        """What processes get: the automaton too, so that one that is started later does not read a newer file."""
        _ = self.automaton
        return self.__dict__

    def score(self, sample: Sample) -> float:
        """Give a value in [0, 1]."""
        progress = self.automaton.progress(sample.response)
        return progress if self.partial else float(progress == 1.0)

    @cached_property
    def automaton(self) -> Automaton:
        """What responses are followed through."""
        return self.read("automaton")


@component
class AdaptiveAutomaton(AutomatonTerm, LoadedTerm):
    """The same with distances that follow what training has reached. (arXiv 2412.10917.)

    After an iteration whose responses came nearer to acceptance than any before, `theta` is added to the distance of
    every state that is as far as the nearest that they reached, or farther: the next step is worth more, the steps
    that are known are worth less of the whole. What comes nearer for the first time counts for the next iteration.
    """

    theta: float = Field(default=1.0, gt=0)
    workers: int = Field(default=1, ge=1)
    """Processes that follow responses through the automaton."""
    timeout_s: float = Field(default=10.0, gt=0)

    def load(self, key: str) -> "Adaptive":
        """Read it. Raises `UserError`, which begins with `key`."""
        automaton = self.read(key)
        plain = AutomatonProgress(path=self.path, timeout_s=self.timeout_s, **self.definition())
        return Adaptive(automaton.distances[automaton.start], self.theta, Workers([plain], self.workers))


class Adaptive(Scorer):
    """Progress of the plain term, which processes that can be killed compute, at distances that have moved."""

    learns = True

    def __init__(self, whole: int, theta: float, workers: Workers) -> None:
        self.whole = whole
        """The start's distance."""
        self.theta = theta
        self.raised: list[int] = []
        """The distances, each nearer than the one before, from which on distances were raised."""
        self._workers = workers
        self._reached: list[int] = []

    def begin(self, sample: Sample) -> Job:
        """Begin to follow it."""
        (job,) = self._workers.submit([sample])
        return job

    def outcomes(self, begun: Sequence[Job]) -> list[float | Failure]:
        """Progress with the distances of this iteration: from 0 to 1."""
        plain = self._workers.outcomes(begun, self.on_wait)
        nearest = [each if isinstance(each, Failure) else round(self.whole * (1 - each)) for each in plain]
        self._reached = [each for each in nearest if not isinstance(each, Failure)]
        start = self.moved(self.whole)
        return [each if isinstance(each, Failure) else (start - self.moved(each)) / start for each in nearest]

    def moved(self, distance: int) -> float:
        """What a distance has become."""
        return distance + self.theta * sum(distance >= each for each in self.raised)

    def seen(self) -> list[float]:
        """The nearest that a response has come."""
        return [float(min(self._reached))] if self._reached else []

    def learn(self, seen: Sequence[float]) -> None:
        """Raise distances if something came nearer than ever; there is no next step behind acceptance."""
        nearest = int(min(seen, default=self.whole))
        if 0 < nearest < min(self.raised, default=self.whole):
            self.raised.append(nearest)

    def state(self) -> dict[str, Any]:
        """From which distances on they were raised."""
        return {"raised": list(self.raised)}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take them back."""
        self.raised = [int(each) for each in state["raised"]]

    def metrics(self) -> dict[str, Told]:
        """The nearest to acceptance that training has come while there was a next step."""
        return {"nearest": Told(float(min(self.raised, default=self.whole)), 1)}

    def close(self) -> None:
        """End the processes."""
        self._workers.close()
