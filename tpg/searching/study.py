"""A study that several processes and machines may share, and which goes on where it was stopped."""

import json
import os
import socket
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import optuna
from optuna.storages import RDBStorage, fail_stale_trials
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from tpg.errors import UserError, one_line
from tpg.searching.definition import Sweep
from tpg.searching.seeding import place, proposed

HEARTBEAT = 60
"""Seconds between the signs of life of a running trial; after twice as many it counts as dead."""


def opened(sweep: Sweep, name: str, folder: Path, iterations: int) -> Study:
    """The study, made if there is none. Raises `UserError` if its storage is not to be had."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
    warnings.filterwarnings("ignore", message="Heartbeat of storage")
    url = sweep.storage or f"sqlite:///{folder / 'study.db'}"
    waits: dict[str, Any] = {"connect_args": {"timeout": 60}} if url.startswith("sqlite") else {"pool_pre_ping": True}
    try:
        return optuna.create_study(
            storage=RDBStorage(url, engine_kwargs=waits, heartbeat_interval=HEARTBEAT),
            study_name=name,
            directions=list(sweep.wanted.values()),
            sampler=sweep.sampler.build(sweep.parameters),
            pruner=sweep.pruner.build(iterations),
            load_if_exists=True,
        )
    except Exception as error:  # of the database's driver, whichever it is
        cause = one_line(error)[:300]
        raise UserError(f"sweep.storage={_without_password(url)}: cannot be opened: {cause}") from None


def check_unchanged(study: Study, settings: dict[str, Any]) -> None:
    """Raise `UserError` if the study was begun with other settings, by which its trials could not be compared."""
    settings = json.loads(json.dumps(settings))
    stored = study.user_attrs.get("settings")
    if stored is None:
        study.set_user_attr("settings", settings)
        return
    for key in {**stored, **settings}:
        if stored.get(key) != settings.get(key):
            raise UserError(
                f"sweep: the study '{study.study_name}' was begun with {key}={_shown(stored.get(key))}, not"
                f" {_shown(settings.get(key))}; continue it as it was, or give another run_dir or sweep.study"
            )


def recover(study: Study, retries: int) -> int:
    """Mark trials whose process is gone as failed, and queue every killed one again; returns how many."""
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        if _is_gone(trial.user_attrs.get("worker")):
            study.tell(trial.number, state=TrialState.FAIL)
    fail_stale_trials(study)
    trials = study.get_trials(deepcopy=False)
    done = repeated(trials)
    queued = 0
    for trial in trials:
        attempt = trial.user_attrs.get("attempt", 0)
        if killed(trial) and trial.number not in done and attempt < retries and trial.params:
            folder = trial.user_attrs.get("folder", folder_name(trial.number))
            study.enqueue_trial(
                trial.params, user_attrs={"repeats": trial.number, "attempt": attempt + 1, "folder": folder}
            )
            queued += 1
    return queued


def next_trial(study: Study, sweep: Sweep) -> FrozenTrial | None:
    """A trial to run, one that is queued first; None when the study is complete."""
    waiting = study.get_trials(deepcopy=False, states=(TrialState.WAITING,))
    if not waiting and sum(proposed(trial) for trial in study.get_trials(deepcopy=False)) >= sweep.limit:
        return None
    asked = study.ask({key: parameter.distribution() for key, parameter in sweep.parameters.items()})
    if "repeats" not in asked.user_attrs and place(study, asked.number) >= sweep.limit:
        # Another process asked at the same moment.
        asked.set_user_attr("surplus", True)
        study.tell(asked, state=TrialState.FAIL)
        return None
    asked.set_user_attr("worker", _this_process())
    if "folder" not in asked.user_attrs:
        asked.set_user_attr("folder", folder_name(asked.number))
    return numbered(study, asked.number)


def numbered(study: Study, number: int) -> FrozenTrial:
    """The trial as it stands."""
    return next(trial for trial in study.get_trials(deepcopy=False) if trial.number == number)


def folder_name(number: int) -> str:
    """Of a trial's run, within the sweep's folder."""
    return f"trial-{number:04d}"


def repeated(trials: list[FrozenTrial]) -> set[int]:
    """Numbers of the trials that another one repeats."""
    return {trial.user_attrs["repeats"] for trial in trials if "repeats" in trial.user_attrs}


def killed(trial: FrozenTrial) -> bool:
    """Whether it ended without a word, or was asked to stop."""
    return trial.state == TrialState.FAIL and not {"error", "surplus"} & trial.user_attrs.keys()


@contextmanager
def running(study: Study, trial: FrozenTrial) -> Iterator[optuna.Trial]:
    """The trial in this process, with signs of life while it lasts."""
    handle = optuna.Trial(study, trial._trial_id)
    handle.set_user_attr("worker", _this_process())
    storage: Any = study._storage
    ended = threading.Event()

    def beat() -> None:
        while True:
            storage.record_heartbeat(trial._trial_id)
            if ended.wait(HEARTBEAT):
                return

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield handle
    finally:
        ended.set()
        thread.join()


def _this_process() -> list[Any]:
    return [socket.gethostname(), os.getpid(), _started(os.getpid())]


def _is_gone(worker: list[Any] | None) -> bool:
    """Whether it was a process of this machine that has ended; those of others tell by their signs of life."""
    if worker is None or worker[0] != socket.gethostname():
        return False
    try:
        os.kill(worker[1], 0)
    except ProcessLookupError:
        return True
    except OSError:
        return False
    return _started(worker[1]) != worker[2]


def _started(process: int) -> str | None:
    """When a process began, where the system tells: numbers of processes are given again."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return None


def _without_password(url: str) -> str:
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import ArgumentError

    try:
        return make_url(url).render_as_string(hide_password=True)
    except ArgumentError:
        return "..."


def _shown(value: Any) -> str:
    return json.dumps(value)
