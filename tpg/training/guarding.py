"""The callback that holds an iteration's metrics against the guards."""

import json
import os
from collections.abc import Mapping
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from rich.console import Console
from rich.markup import escape

from tpg.reporting.guard_records import NAME, read_records, standing
from tpg.spelling import did_you_mean
from tpg.training.console import warn
from tpg.training.guards import Guard, GuardStop, Watch, record, watches
from tpg.training.metric_names import is_known
from tpg.training.module import IterationCallback, TrajectoryPolicyGradient
from tpg.training.parallel.ranks import Ranks
from tpg.training.run_folder import RunFolder, write_atomically


class Guards(IterationCallback):
    """Says when a guard's bound is crossed and when it no longer is, once each: on the screen, in the run's
    guards.jsonl and to the loggers that can alert; ends the run for a guard with `action: stop`.

    Its place is after the recorders, as its state comes from the written rows, and before the checkpoints, so that none
    is ahead of what was said. The last iteration is not stopped: there is nothing left to save. Raises `GuardStop` when
    the iteration is recorded.
    """

    def __init__(
        self,
        guards: Mapping[str, Guard],
        responses: int,
        iterations: int,
        folder: RunFolder,
        console: Console,
        ranks: Ranks | None = None,
    ) -> None:
        self.guards = guards
        self.responses = responses
        self.iterations = iterations
        self.folder = folder
        self.path = folder.path / NAME
        self.console = console
        self.ranks = ranks or Ranks()
        self._watches: dict[str, Watch] = {}
        self._looked = False
        self._stop: str | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take the state from the rows that stand, and forget what was said of later iterations."""
        self._looked, self._stop = False, None
        if not self.folder.writes:
            return
        rows = self.folder.rows()
        done = int(rows[-1]["iteration"]) if rows else 0
        self._watches = watches(self.guards, self.responses, rows)
        kept = [each for each in read_records(self.path) if int(each["iteration"]) <= done]
        if self.path.exists():
            write_atomically(self.path, "".join(json.dumps(each) + "\n" for each in kept))
        stood = standing(kept)
        for name, watch in self._watches.items():
            if watch.stands and name not in stood:
                watch.streak = watch.guard.patience - 1  # the guard was changed: what it now says is yet to be said
        for name in sorted(stood - {name for name, watch in self._watches.items() if watch.stands}):
            began = next(each for each in reversed(kept) if each["guard"] == name)
            told = f"{began['metric']}: the guard was changed when the run was continued"
            self._append({**began, "event": "ended", "iteration": done + 1, "value": None, "told": told})

    def on_iteration_end(self, module: TrajectoryPolicyGradient, iteration: int) -> None:
        """Look at the iteration's row."""
        self._stop = self.ranks.from_main(lambda: self._look(module, iteration))

    def on_iteration_recorded(self, module: TrajectoryPolicyGradient, iteration: int) -> None:
        """End the run if a guard asks for it."""
        if self._stop is not None:
            raise GuardStop(self._stop)

    def _look(self, module: TrajectoryPolicyGradient, iteration: int) -> str | None:
        """Say what there is to say; why the run should end, if it should."""
        stops = []
        self._name_unknown(module.metrics)
        for name, watch in self._watches.items():
            value = module.metrics.get(watch.guard.metric)
            stood = watch.stands
            event = watch.see(value)
            if event is None:
                continue
            assert value is not None
            if event == "stopped" and iteration == self.iterations:
                if stood:
                    continue
                event = "began"
            said = record(name, watch, event, iteration, float(value))
            self._append(said)
            if event == "ended":
                self.console.print(escape(f"guard {name}: {said['told']}, iteration {iteration}"), highlight=False)
                continue
            text = said["told"] + (f"; {watch.guard.remedy}" if watch.guard.remedy else "")
            for logger in module.loggers:
                if hasattr(logger, "alert"):
                    logger.alert(f"guard {name}", f"iteration {iteration}: {text}")
            if event == "stopped":
                stops.append(f"guards.{name}: stopped after iteration {iteration}: {text}")
            else:
                warn(self.console, f"guard {name}, iteration {iteration}: {text}")
        if not stops:
            return None
        more = f" (and {len(stops) - 1} more in {NAME})" if len(stops) > 1 else ""
        name = stops[0].partition(":")[0].partition("/")[0]  # without the term that it is about
        return f"{stops[0]}{more}; go on with: python -m tpg.train resume={self.folder.path} ++{name}.action=warn"

    def _name_unknown(self, metrics: Mapping[str, float]) -> None:
        """Say once which guards look at a metric that the first iteration does not have and no run is known to have."""
        if self._looked:
            return
        self._looked = True
        for name, guard in self.guards.items():
            if guard.metric not in metrics and not is_known(guard.metric):
                told = f"guards.{name}.metric={guard.metric}: no metric of the first iteration; the guard sleeps until"
                near = did_you_mean(guard.metric, metrics)
                warn(self.console, f"{told} there is one{near}")

    def _append(self, said: Mapping[str, Any]) -> None:
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(said, ensure_ascii=False) + "\n")
            file.flush()
            os.fsync(file.fileno())
