"""A run that waits for its judge is stopped by a signal."""

import os
import signal
import subprocess
import sys
import time

import pytest
from judge_server import MODEL, Says, Slow
from judging_options import judge, pairwise, sample

from tpg.rewards.model import RewardModel


class Asked(Exception):  # noqa: N818
    """Somebody asked for a stop."""


def raise_asked():
    raise Asked


@pytest.mark.parametrize("make", [judge, pairwise])
def test_a_wait_for_verdicts_ends_when_it_is_asked_to(server, make):
    server.always = Slow(3600)
    with RewardModel({"judge": make(server, timeout_s=3600)}, workers=1) as model:
        model.interrupt_with(raise_asked)
        with pytest.raises(Asked):
            model.score([sample("a"), sample("b")])


@pytest.mark.long
def test_sigterm_while_the_judge_says_nothing_leaves_the_last_boundary(server, tmp_path):
    server.script = [Says('{"score": 1}')] * 24
    server.always = Slow(3600)
    given = {"model": MODEL, "base_url": server.url, "cache": "null", "explain": "false", "timeout_s": 3600}
    command = [
        *[sys.executable, "-m", "tpg.train", "policy=tiny", "policy.hidden_size=16", "policy.layers=1", "task=sort"],
        *["trainer=cpu", "trainer.precision=32-true", "rollout.prompts=2", "rollout.responses_per_prompt=4"],
        *["rollout.max_response_tokens=6", "rollout.max_prompt_tokens=32", "iterations=9", "evaluation.every=0"],
        *["algorithm=rloo", "reward_workers=1", "logger=[csv]", f"run_dir={tmp_path}/a", "checkpoint.every=100"],
        *["reward_model=[judge]", *(f"reward_model.judge.{name}={value}" for name, value in given.items())],
    ]
    variables = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    process = subprocess.Popen(
        command, env={**os.environ, **variables}, cwd=tmp_path, stderr=subprocess.PIPE, text=True
    )
    try:
        deadline = time.monotonic() + 180
        while len(server.bodies) <= 24 and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.01)
        process.send_signal(signal.SIGTERM)
        # It would wait for an hour.
        said = process.communicate(timeout=180)[1]
    finally:
        process.kill()
    assert process.returncode == 143, said
    (checkpoint,) = (tmp_path / "a" / "checkpoints").iterdir()
    assert checkpoint.name in [f"iteration-{iteration:06d}.ckpt" for iteration in range(10)]
    rows = (tmp_path / "a" / "metrics.csv").read_text().splitlines()[1:]
    assert len(rows) == int(checkpoint.stem.removeprefix("iteration-")) < 9
