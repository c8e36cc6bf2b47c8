"""Which trials are stopped early, by the evaluations of those before."""

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

from pydantic import Field

from tpg.component import component

if TYPE_CHECKING:
    from optuna.pruners import BasePruner


@component
class Pruner(ABC):
    """Judges a trial by a metric of its metrics.csv, each time that it is measured."""

    @property
    @abstractmethod
    def reads(self) -> str | None:
        """The metric that it judges by; None: it judges nothing."""

    @abstractmethod
    def build(self, iterations: int) -> "BasePruner":
        """Optuna's pruner, for trials of so many iterations."""


@component
class NoPruner(Pruner):
    """Every trial runs to its end."""

    @property
    def reads(self) -> None:
        """Nothing."""

    def build(self, iterations: int) -> "BasePruner":
        """Optuna's NopPruner."""
        from optuna.pruners import NopPruner

        return NopPruner()


@component
class Median(Pruner):
    """Stops a trial whose best value so far is worse than the median of the others at that iteration."""

    metric: str
    startup_trials: int = Field(ge=0)
    """Finished ones before the first that may be stopped."""
    warmup_iterations: int = Field(ge=0)
    """Iterations of a trial in which it is not stopped."""

    @property
    def reads(self) -> str:
        """The metric."""
        return self.metric

    def build(self, iterations: int) -> "BasePruner":
        """Optuna's MedianPruner."""
        from optuna.pruners import MedianPruner

        return MedianPruner(n_startup_trials=self.startup_trials, n_warmup_steps=self.warmup_iterations + 1)


@component
class Hyperband(Pruner):
    """Several halvings side by side, each with its own patience. (arXiv 1603.06560.)"""

    metric: str
    min_iterations: int = Field(ge=1)
    """Iterations before the first halving of the least patient."""
    reduction: int = Field(ge=2)
    """One in so many goes on."""

    @property
    def reads(self) -> str:
        """The metric."""
        return self.metric

    def build(self, iterations: int) -> "BasePruner":
        """Optuna's HyperbandPruner."""
        from optuna.pruners import HyperbandPruner

        return HyperbandPruner(self.min_iterations, max(iterations, self.min_iterations), self.reduction)
