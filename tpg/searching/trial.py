"""One trial: a run in its own folder, and its word to the study."""

import contextlib
import json
import math
import shutil
import signal
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from tpg.errors import Interrupted, UserError, with_kind
from tpg.launching.processes import perform
from tpg.launching.spec import RunSpec
from tpg.searching.definition import Sweep
from tpg.searching.study import numbered, running
from tpg.spelling import did_you_mean
from tpg.training.experiment import Experiment
from tpg.training.pruning import Pruned
from tpg.training.run_folder import RunFolder, write_atomically


@dataclass(frozen=True)
class TrialRun:
    """What a trial runs: an experiment and the config that is kept of it."""

    experiment: Experiment
    config: Mapping[str, Any]
    text: str
    """The config as the run's folder holds it."""


def attempt(
    study: Study,
    sweep: Sweep,
    number: int,
    parent: Path,
    compose: Callable[[Path], TrialRun],
    mistake: Callable[[Exception], str | None],
) -> int | None:
    """Run a trial and tell the study how it ended; a signal's number if it was asked to stop.

    What the run says goes to `logs/` in the sweep's folder. A mistake or an error ends this trial only.
    """
    trial = numbered(study, number)
    path = parent / trial.user_attrs["folder"]
    log = parent / "logs" / f"{path.name}.txt"
    log.parent.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    listening = {kind: signal.getsignal(kind) for kind in (signal.SIGINT, signal.SIGTERM)}
    with running(study, trial) as handle, log.open("a", encoding="utf-8", buffering=1) as file:

        def report(iteration: int, value: float) -> bool:
            handle.report(value, iteration)
            return bool(handle.should_prune())

        stopped: int | None = None
        state, values = TrialState.FAIL, None
        try:
            with contextlib.redirect_stdout(file), contextlib.redirect_stderr(file):
                summary = _run(compose(path), path, sweep, report)
            values = measured(summary, sweep)
            state = TrialState.COMPLETE
        except Pruned as pruned:
            state = TrialState.PRUNED
            facts = {"iteration": pruned.iteration, "metric": pruned.metric, "value": pruned.value}
            write_atomically(path / "pruned.json", json.dumps(facts) + "\n")
        except (Interrupted, KeyboardInterrupt) as interruption:
            stopped = int(interruption.args[0]) if isinstance(interruption, Interrupted) else signal.SIGINT
        except Exception as error:
            message = mistake(error)
            if message is None:
                file.writelines(traceback.format_exception(error))
                message = with_kind(error)
            handle.set_user_attr("error", message[:500])
        finally:
            for kind, handler in listening.items():
                signal.signal(kind, handler)
        handle.set_user_attr("seconds", round(time.monotonic() - began, 1))
        study.tell(number, values, state=state)
    return stopped


def _run(planned: TrialRun, path: Path, sweep: Sweep, report: Callable[[int, float], bool]) -> dict[str, Any]:
    """Train in a folder of the trial's own, or go on there."""
    begun = RunFolder(path).config.is_file()
    if not begun and path.exists():
        shutil.rmtree(path)  # killed while it was being made
    planned.experiment.check()
    spec = RunSpec(planned.experiment, planned.config, planned.text, path, begun, watched=sweep.pruner.reads)
    return perform(spec, report)


def measured(summary: Mapping[str, Any], sweep: Sweep) -> list[float]:
    """The objectives' values. Raises `UserError` for one that the run does not have or that is no number."""
    known = {**summary.get("last", {}), **{name: value for name, value in summary.items() if name != "last"}}
    values = []
    for name in sweep.wanted:
        if name not in known:
            raise UserError(f"sweep.objectives.{name}: the run has no such metric{did_you_mean(name, known)}")
        if not math.isfinite(known[name]):
            raise UserError(f"sweep.objectives.{name}: is {known[name]}")
        values.append(float(known[name]))
    return values


def told(trial: FrozenTrial, sweep: Sweep) -> str:
    """How a trial ended, in words."""
    if trial.state == TrialState.COMPLETE:
        return "  ".join(f"{name} {value:.4g}" for name, value in zip(sweep.wanted, trial.values, strict=True))
    if trial.state == TrialState.PRUNED:
        last = max(trial.intermediate_values, default=0)
        value = trial.intermediate_values.get(last, math.nan)
        return f"pruned after iteration {last} ({sweep.pruner.reads} {value:.4g})"
    return f"failed: {trial.user_attrs['error']}" if "error" in trial.user_attrs else "stopped; continues next time"
