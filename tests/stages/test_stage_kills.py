"""Stages in processes of their own: killed at any moment, or asked to stop, they go on to the same numbers."""

import os
import signal
import subprocess
import sys
import time

import pytest
from stage_options import assert_same_run

POLICY = ["policy=tiny", "policy.hidden_size=32", "policy.layers=2", "policy.heads=2", "logger=[csv]", "trainer=cpu"]
STAGES = {
    "tpg.sft": (["task=sort", "demonstrations.count=300", "responses_per_step=8"], "policy"),
    "tpg.reward": (
        ["task=hidden_reward", "preferences.count=300", "pairs_per_step=8", "centering=0.01"],
        "reward_model",
    ),
}
EVERY = ["epochs=3", "optimizer.lr=1e-3", "optimizer.schedule=cosine", "optimizer.warmup_steps=5", "checkpoint.every=4"]


def started(entry, folder, *arguments):
    command = [sys.executable, "-m", entry, *arguments]
    return subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def after(run, step, process):
    """Wait for the checkpoint of this step or a later one."""
    while not any(int(path.stem.split("-")[1]) >= step for path in run.glob("checkpoints/*.ckpt")):
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.01)


def done(process):
    _, err = process.communicate(timeout=300)
    return process.returncode, err


@pytest.mark.long
@pytest.mark.parametrize("entry", STAGES)
def test_a_stage_that_is_killed_again_and_again_ends_as_one_that_was_let_alone(entry, tmp_path):
    own, model = STAGES[entry]
    arguments = [*POLICY, *own, *EVERY]
    assert done(started(entry, tmp_path, *arguments, "run_dir=whole")) == (0, "")
    process = started(entry, tmp_path, *arguments, "run_dir=run")
    for step, number, code in ((4, signal.SIGKILL, -9), (30, signal.SIGTERM, 143), (50, signal.SIGKILL, -9)):
        after(tmp_path / "run", step, process)
        os.kill(process.pid, number)
        ended, err = done(process)
        assert ended == code
        if number == signal.SIGTERM:
            assert err == f"interrupted; continue with: python -m {entry} resume={tmp_path / 'run'}\n"
        assert not (tmp_path / "run" / "summary.json").exists()
        process = started(entry, tmp_path, "resume=run")
    assert done(process) == (0, "")
    assert_same_run(tmp_path / "run", tmp_path / "whole", model)
