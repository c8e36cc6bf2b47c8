"""Optuna samplers whose proposal depends on the trial's place in the study, whoever asks and whatever ran before."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState


def proposed(trial: FrozenTrial) -> bool:
    """Whether a sampler chose its values: it is no repetition, and was not one too many."""
    return not {"repeats", "surplus"} & trial.user_attrs.keys()


def place(study: Study, number: int) -> int:
    """How many trials were proposed before the one of this number."""
    return sum(proposed(trial) for trial in study.get_trials(deepcopy=False) if trial.number < number)


class Seeded(BaseSampler):
    """A sampler made anew for every trial, from a seed and the trial's place: continued, a study goes on alike.

    One that is seeded when a study is opened would propose its first trials again each time, and on every machine.
    """

    def __init__(self, make: Callable[[int], BaseSampler], seed: int) -> None:
        self.make = make
        self.seed = seed
        self.sampler = make(seed)

    def before_trial(self, study: Study, trial: FrozenTrial) -> None:
        """Make the trial's sampler."""
        seed = np.random.SeedSequence([self.seed, place(study, trial.number)]).generate_state(1)[0]
        self.sampler = self.make(int(seed))
        self.sampler.before_trial(study, trial)

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """What is proposed together."""
        return self.sampler.infer_relative_search_space(study, trial)

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Values that are proposed together."""
        return self.sampler.sample_relative(study, trial, search_space)

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """A value that is proposed alone."""
        return self.sampler.sample_independent(study, trial, param_name, param_distribution)

    def after_trial(self, study: Study, trial: FrozenTrial, state: TrialState, values: Sequence[float] | None) -> None:
        """Take notice of a trial's end."""
        self.sampler.after_trial(study, trial, state, values)


class Enumerated(BaseSampler):
    """The combination that stands at the trial's place, so that several machines never take the same."""

    def __init__(self, combinations: Sequence[Mapping[str, Any]]) -> None:
        self.combinations = combinations

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """Nothing is estimated."""
        return {}

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Nothing is proposed together."""
        return {}

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """The combination's value."""
        return self.combinations[place(study, trial.number) % len(self.combinations)][param_name]
