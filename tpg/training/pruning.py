"""Stopping a run early because others do better."""

import math
from collections.abc import Callable
from typing import Any

from lightning.pytorch import LightningModule, Trainer

from tpg.training.module import IterationCallback, TrajectoryPolicyGradient
from tpg.training.run_folder import RunFolder


class Pruned(Exception):  # noqa: N818
    """The run was stopped at the end of an iteration: it is not worth going on."""

    def __init__(self, iteration: int, metric: str, value: float) -> None:
        super().__init__(iteration, metric, value)
        self.iteration = iteration
        self.metric = metric
        self.value = value


class Pruning(IterationCallback):
    """Reports a metric whenever an iteration has measured it, and stops the run if the answer is to stop.

    The iteration is complete then and its row is written. What an earlier part of the same run measured is reported
    first. The last iteration is not stopped: there is nothing left to save.
    """

    def __init__(self, metric: str, folder: RunFolder, iterations: int, report: Callable[[int, float], bool]) -> None:
        self.metric = metric
        self.folder = folder
        self.iterations = iterations
        self.report = report

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Tell again what the rows of a continued run hold."""
        for row in self.folder.rows():
            if row.get(self.metric):
                self.report(int(row["iteration"]), float(row[self.metric]))

    def on_iteration_recorded(self, module: TrajectoryPolicyGradient, iteration: int) -> None:
        """Report, and raise `Pruned` if the run should stop."""
        value = module.metrics.get(self.metric)
        if value is None or not math.isfinite(value):
            return
        if self.report(iteration, value) and iteration < self.iterations:
            loggers: list[Any] = module.loggers
            for logger in loggers:
                if hasattr(logger.experiment, "summary"):
                    logger.experiment.summary.update({"pruned": True})
            raise Pruned(iteration, self.metric, value)
