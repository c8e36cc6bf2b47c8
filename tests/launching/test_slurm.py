"""A SLURM job that is told to stop requeues itself, where its user wants that and its folder is found again."""

import os
import re
import signal
from types import SimpleNamespace

import pytest
from small_runs import TINY

import tpg.launching.spec
import tpg.sweep
import tpg.train
from tpg.errors import Interrupted


@pytest.fixture
def slurm(monkeypatch, tmp_path):
    """A SLURM job of this process, whose `scontrol` keeps what it is told; runs end as `slurm.ends` says."""
    scontrol = tmp_path / "bin" / "scontrol"
    scontrol.parent.mkdir()
    scontrol.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/told\n')
    scontrol.chmod(0o755)
    monkeypatch.setenv("PATH", f"{scontrol.parent}:{os.environ['PATH']}")
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    found = SimpleNamespace(ends=Interrupted(int(signal.SIGUSR1)), begun=[], scontrol=scontrol)
    found.told = lambda: (tmp_path / "told").read_text().splitlines() if (tmp_path / "told").exists() else []

    def run(experiment, prepared, folder, config, stop_file, ranks):
        found.begun.append((folder.path.name, config["run_id"]))
        raise found.ends

    monkeypatch.setattr(tpg.launching.spec, "prepare", lambda experiment: None)
    monkeypatch.setattr(tpg.launching.spec, "run", run)
    return found


def test_a_job_that_sigusr1_stopped_requeues_itself_and_goes_on_in_its_folder(entry, slurm, monkeypatch):
    code, _, err = entry(tpg.train, *TINY, "run_dir=a")
    assert code == 138
    assert err == ["SLURM job 17 is requeued and will continue"]
    assert slurm.told() == ["requeue 17"]
    code, _, err = entry(tpg.train, *TINY, "run_dir=a")
    assert (code, len(err)) == (2, 1)
    assert "is not empty" in err[0]
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    assert entry(tpg.train, *TINY, "run_dir=a")[0] == 138
    assert slurm.begun == [slurm.begun[0], slurm.begun[0]]  # the same run
    code, _, err = entry(tpg.train, *TINY, "run_dir=a", "optimizer.lr=0.5")
    assert (code, len(err)) == (2, 1)
    assert re.match(r"error: optimizer.lr=0.5: .*/a holds a run with optimizer.lr=0.001; give another run_dir", err[0])


def test_a_task_of_a_job_array_requeues_itself_alone(entry, slurm, monkeypatch):
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "16")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "3")
    assert entry(tpg.train, *TINY, "run_dir=a")[0] == 138
    assert slurm.told() == ["requeue 16_3"]


@pytest.mark.parametrize(
    ("number", "arguments", "said"),
    [
        (signal.SIGTERM, ["run_dir=a"], ["interrupted; continue with: python -m tpg.train resume={a}"]),
        (
            signal.SIGUSR1,
            ["run_dir=a", "checkpoint.requeue=false"],
            ["interrupted; continue with: python -m tpg.train resume={a}"],
        ),
    ],
    ids=["scancel", "unwanted"],
)
def test_a_job_is_not_requeued_against_the_users_will(entry, slurm, tmp_path, number, arguments, said):
    slurm.ends = Interrupted(int(number))
    code, _, err = entry(tpg.train, *TINY, *arguments)
    assert code == 128 + number
    assert err == [line.format(a=tmp_path / "a") for line in said]
    assert slurm.told() == []


def test_a_job_that_would_not_find_its_folder_again_is_not_requeued(entry, slurm):
    code, _, err = entry(tpg.train, *TINY)
    assert code == 138
    assert err[0] == "not requeued: without run_dir= the job would begin another run"
    assert err[1].startswith("interrupted; continue with: python -m tpg.train resume=")
    assert slurm.told() == []


def test_a_refused_requeue_is_told(entry, slurm):
    slurm.scontrol.write_text("#!/bin/sh\necho 'Access denied' >&2; exit 1\n")
    _, _, err = entry(tpg.train, *TINY, "run_dir=a")
    assert err == ["warning: scontrol requeue 17 failed: Access denied"]
