"""A study goes on: what was killed is tried again, what is over stays, and nothing alive is touched."""

import os
import socket
import subprocess
import sys

import pytest
from optuna.trial import TrialState

from tpg.errors import UserError
from tpg.searching.definition import Sweep
from tpg.searching.parameters import Categorical
from tpg.searching.pruners import NoPruner
from tpg.searching.samplers import Grid
from tpg.searching.study import check_unchanged, next_trial, opened, recover, running

SWEEP = Sweep(
    parameters={"seed": Categorical(values=[0, 1, 2])},
    sampler=Grid(),
    pruner=NoPruner(),
    trials=10,
    jobs=1,
    retries=1,
)


@pytest.fixture
def study(tmp_path):
    return opened(SWEEP, "it", tmp_path, 5)


def ended(study, trial, value=1.0):
    study.tell(trial.number, value)


def test_a_study_ends_with_its_grid(study):
    seeds = []
    while (trial := next_trial(study, SWEEP)) is not None:
        seeds.append(trial.params["seed"])
        ended(study, trial)
    assert seeds == [0, 1, 2]


def test_two_processes_take_different_trials_and_not_one_too_many(study, tmp_path):
    other = opened(SWEEP, "it", tmp_path, 5)
    taken = [next_trial(each, SWEEP) for each in (study, other, study, other)]
    assert [trial and trial.params["seed"] for trial in taken] == [0, 1, 2, None]


def gone():
    """The number of a process that has ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def as_if_by(study, trial, worker):
    study._storage.set_trial_user_attr(trial._trial_id, "worker", worker)


def test_a_killed_trial_is_repeated_once_in_its_folder_and_the_others_are_kept(study):
    first, second = next_trial(study, SWEEP), next_trial(study, SWEEP)
    ended(study, first)
    as_if_by(study, second, [socket.gethostname(), gone(), "1"])
    assert recover(study, retries=1) == 1
    again = next_trial(study, SWEEP)
    assert (again.params, again.user_attrs["folder"]) == (second.params, "trial-0001")
    assert [trial.state for trial in study.get_trials()] == [TrialState.COMPLETE, TrialState.FAIL, TrialState.RUNNING]
    as_if_by(study, again, [socket.gethostname(), gone(), "1"])
    assert recover(study, retries=1) == 0
    assert recover(study, retries=2) == 1
    assert recover(study, retries=2) == 0
    assert next_trial(study, SWEEP).user_attrs["folder"] == "trial-0001"
    assert next_trial(study, SWEEP).params == {"seed": 2}


def test_a_number_of_a_process_that_is_another_now_is_no_sign_of_life(study):
    trial = next_trial(study, SWEEP)
    as_if_by(study, trial, [socket.gethostname(), os.getpid(), "another start"])
    assert recover(study, retries=1) == 1


def test_trials_that_run_here_or_elsewhere_are_left_alone(study):
    mine, theirs = next_trial(study, SWEEP), next_trial(study, SWEEP)
    as_if_by(study, theirs, ["another machine", gone(), "1"])
    with running(study, mine):
        assert recover(study, retries=1) == 0
    assert {trial.state for trial in study.get_trials()} == {TrialState.RUNNING}


def test_another_machine_that_gives_no_sign_of_life_is_given_up(study, monkeypatch):
    trial = next_trial(study, SWEEP)
    with running(study, trial):
        pass
    as_if_by(study, trial, ["another machine", 1, "1"])
    assert recover(study, retries=1) == 0
    monkeypatch.setattr(type(study._storage), "_get_stale_trial_ids", lambda self, of: [trial._trial_id])
    assert recover(study, retries=1) == 1


def test_a_trial_that_failed_by_itself_is_not_repeated_and_counts(study):
    trial = next_trial(study, SWEEP)
    study._storage.set_trial_user_attr(trial._trial_id, "error", "out of memory")
    study.tell(trial.number, state=TrialState.FAIL)
    assert recover(study, retries=5) == 0
    assert [next_trial(study, SWEEP).params["seed"] for _ in range(2)] == [1, 2]
    assert next_trial(study, SWEEP) is None


def test_other_settings_are_refused_by_name(study):
    check_unchanged(study, {"parameters": {"seed": (0, 1)}, "overrides": ["task=sort"]})
    check_unchanged(study, {"parameters": {"seed": [0, 1]}, "overrides": ["task=sort"]})
    with pytest.raises(UserError, match=r"^sweep: the study 'it' was begun with overrides=\[\"task=sort\"\], not \[\]"):
        check_unchanged(study, {"parameters": {"seed": [0, 1]}, "overrides": []})


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("nonsense", "sweep.storage=...: cannot be opened: "),
        ("mysterious://me:secret@host/db", "sweep.storage=mysterious://me:***@host/db: cannot be opened: "),
    ],
)
def test_a_storage_that_cannot_be_opened_is_told_without_its_password(tmp_path, url, told):
    with pytest.raises(UserError) as refused:
        opened(Sweep(**{**vars(SWEEP), "storage": url}), "it", tmp_path, 5)
    assert str(refused.value).startswith(told)
    assert "secret" not in str(refused.value)
