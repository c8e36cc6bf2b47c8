"""Real sweeps by `-m`, in processes: killed, stopped, and by other launchers."""

import csv
import os
import signal
import subprocess
import sys
import time

import pytest
from small_sweeps import FOUR, JOBS, TINY, table


def start(folder, *overrides):
    """A sweep that has begun; its output goes to `<folder>.log`."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-m", "tpg.train", "-m", *TINY, f"run_dir={folder}", *overrides]
    with folder.with_name(f"{folder.name}.log").open("a") as log:
        return subprocess.Popen(command, stdout=log, stderr=log, cwd=folder.parent, env=environment)


def finish(process, folder, code):
    try:
        given = process.wait(timeout=240)
    finally:
        process.kill()
    told = folder.with_name(f"{folder.name}.log").read_text()
    assert given == code, told[-3000:]
    return told


def wait_for(process, holds):
    deadline = time.monotonic() + 120
    while process.poll() is None and not holds() and time.monotonic() < deadline:
        time.sleep(0.005)
    assert process.poll() is None


def metrics(folder):
    """The run's metrics but for what a clock says."""
    with (folder / "metrics.csv").open(newline="") as file:
        return [
            {k: v for k, v in row.items() if not k.startswith(("timing_s/", "step_time", "perf/"))}
            for row in csv.DictReader(file)
        ]


def assert_same(folder, other):
    for name in JOBS:
        assert len(metrics(folder / name)) == 2
        assert metrics(folder / name) == metrics(other / name)
        for file in ("completions.jsonl", "policy/model.safetensors"):
            assert (folder / name / file).read_bytes() == (other / name / file).read_bytes()


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The folder of a sweep of four jobs that nothing disturbed."""
    folder = tmp_path_factory.mktemp("sweeps") / "whole"
    finish(start(folder, *FOUR), folder, 0)
    return folder


@pytest.mark.long
def test_a_sweep_killed_half_way_and_continued_is_the_sweep_that_was_not(whole):
    folder = whole.with_name("killed")
    process = start(folder, *FOUR)
    wait_for(process, (folder / JOBS[2] / "metrics.csv").exists)
    process.kill()
    finish(process, folder, -signal.SIGKILL)
    assert not (folder / JOBS[3]).exists()
    told = finish(start(folder, *FOUR), folder, 0)
    assert [line for line in told.splitlines() if "skipped" in line][:2] == [
        "job 0 (algorithm=grpo seed=0): finished before, skipped",
        "job 1 (algorithm=grpo seed=1): finished before, skipped",
    ]
    assert_same(folder, whole)


CALLBACKS = """
from lightning.pytorch import Callback

class Fine(Callback):
    pass

class Crash(Callback):
    def on_train_epoch_end(self, trainer, pl_module):
        1 / 0
"""


@pytest.mark.long
@pytest.mark.parametrize("launcher", ["joblib", "submitit_local"])
def test_launchers_of_other_processes_tell_a_crash_and_finish_the_rest(launcher, whole):
    folder = whole.with_name(launcher)
    whole.with_name("mine.py").write_text(CALLBACKS)
    overrides = [f"hydra/launcher={launcher}", "+callbacks.mine._target_=mine.Fine,mine.Crash", "iterations=2"]
    told = finish(start(folder, *overrides, "algorithm=grpo", "seed=1"), folder, 1)
    kept = folder / ".jobs" / "_target__mine.Crash.traceback.txt"
    line = f"job 1 (+callbacks.mine._target_=mine.Crash): ZeroDivisionError: division by zero (traceback: {kept})"
    assert f"error: {line}" in told.splitlines()
    assert [row[-2:] for row in table(told)[:2]] == [
        ["finished", "_target__mine.Fine"],
        ["failed", "_target__mine.Crash"],
    ]
    assert metrics(folder / "_target__mine.Fine") == metrics(whole / "algorithm_grpo-seed_1")


@pytest.mark.long
@pytest.mark.parametrize("launcher", ["basic", "joblib", "submitit_local"])
def test_sigterm_leaves_checkpoints_with_every_launcher(launcher, tmp_path):
    folder = tmp_path / launcher
    overrides = [f"hydra/launcher={launcher}", "seed=0,1", "iterations=1000", "evaluation.every=0"]
    process = start(folder, *overrides, "checkpoint.every=1000")
    wait_for(process, lambda: len(list(folder.glob("*/metrics.csv"))) >= 1)
    process.send_signal(signal.SIGTERM)
    told = finish(process, folder, 143)
    begun = [path.parent for path in folder.glob("*/metrics.csv")]
    assert all(len(list((run / "checkpoints").glob("*.ckpt"))) == 1 for run in begun)
    assert "continues the sweep" in told
