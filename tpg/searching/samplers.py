"""Who proposes the next trial. Every proposal is a function of the seed, the trial's place and the trials before."""

import itertools
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING

from pydantic import Field

from tpg.component import component
from tpg.errors import UserError
from tpg.searching.parameters import Categorical, Parameter, Value

if TYPE_CHECKING:
    from optuna.samplers import BaseSampler


@component
class Sampler(ABC):
    """Proposes the values of a trial."""

    @abstractmethod
    def build(self, parameters: Mapping[str, Parameter]) -> "BaseSampler":
        """Optuna's sampler."""

    def check(self, parameters: Mapping[str, Parameter], objectives: int) -> None:
        """Raise `UserError` for what it cannot search."""
        return

    def limit(self, parameters: Mapping[str, Parameter]) -> float:
        """How many trials there are at most."""
        return math.inf


@component
class TPE(Sampler):
    """Tree-structured Parzen estimator: likelier where good trials were. (NeurIPS 2011, arXiv 2304.11127.)"""

    seed: int = Field(ge=0)
    startup_trials: int = Field(ge=0)
    """Random ones before the first that is estimated."""
    multivariate: bool
    """Whether parameters are estimated together, so that what goes well together is found."""

    def build(self, parameters: Mapping[str, Parameter]) -> "BaseSampler":
        """Optuna's TPESampler, its random numbers of the trial's place."""
        from optuna.samplers import TPESampler

        from tpg.searching.seeding import Seeded

        return Seeded(
            lambda seed: TPESampler(n_startup_trials=self.startup_trials, multivariate=self.multivariate, seed=seed),
            self.seed,
        )


@component
class Random(Sampler):
    """Every trial drawn alike."""

    seed: int = Field(ge=0)

    def build(self, parameters: Mapping[str, Parameter]) -> "BaseSampler":
        """Optuna's RandomSampler, its random numbers of the trial's place."""
        from optuna.samplers import RandomSampler

        from tpg.searching.seeding import Seeded

        return Seeded(lambda seed: RandomSampler(seed=seed), self.seed)


@component
class CmaEs(Sampler):
    """CMA-ES: a Gaussian that moves and stretches towards good trials; for numbers. (arXiv 1604.00772.)"""

    seed: int = Field(ge=0)
    startup_trials: int = Field(ge=1)
    """Random ones before the first that the Gaussian proposes."""

    def build(self, parameters: Mapping[str, Parameter]) -> "BaseSampler":
        """Optuna's CmaEsSampler, its random numbers of the trial's place."""
        from optuna.samplers import CmaEsSampler

        from tpg.searching.seeding import Seeded

        return Seeded(lambda seed: CmaEsSampler(n_startup_trials=self.startup_trials, seed=seed), self.seed)

    def check(self, parameters: Mapping[str, Parameter], objectives: int) -> None:
        """Refuse lists, a single number, and several objectives."""
        for key, parameter in parameters.items():
            if isinstance(parameter, Categorical):
                raise UserError(f"sweep/sampler=cmaes: searches numbers, and {key} is a list; use sweep/sampler=tpe")
        if len(parameters) < 2:
            raise UserError("sweep/sampler=cmaes: needs two parameters or more; use sweep/sampler=tpe")
        if objectives > 1:
            raise UserError("sweep/sampler=cmaes: has one objective only; use sweep/sampler=tpe")


@component
class Grid(Sampler):
    """Every combination once, the last parameter's values changing first."""

    def build(self, parameters: Mapping[str, Parameter]) -> "BaseSampler":
        """A sampler that reads the combination off the trial's place."""
        from tpg.searching.seeding import Enumerated

        return Enumerated(self.combinations(parameters))

    def check(self, parameters: Mapping[str, Parameter], objectives: int) -> None:
        """Refuse a range without a number of points."""
        self.combinations(parameters)

    def limit(self, parameters: Mapping[str, Parameter]) -> float:
        """The number of combinations."""
        return len(self.combinations(parameters))

    def combinations(self, parameters: Mapping[str, Parameter]) -> list[dict[str, Value]]:
        """All of them."""
        values = [parameter.grid(f"sweep.parameters.{key}") for key, parameter in parameters.items()]
        return [dict(zip(parameters, chosen, strict=True)) for chosen in itertools.product(*values)]
