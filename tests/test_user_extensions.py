"""A user's own reward function, task, option files and sweeps, from another folder."""

import csv
import subprocess
import sys

TASK = """
import os
import signal

from lightning.pytorch import Callback

from tpg.component import component
from tpg.tasks.base import Example, Examples, Task


@component
class Echo(Task):
    size: int = 12

    def columns(self):
        return frozenset({"answer", "letter"})

    def load(self, seed):
        examples = [Example(f"say {i}", str(i), {"letter": chr(97 + i)}) for i in range(self.size)]
        return Examples(tuple(examples[4:]), tuple(examples[:4]))


class AskToStop(Callback):
    def on_fit_start(self, trainer, pl_module):
        os.kill(os.getpid(), signal.SIGINT)
"""
REWARDS = """
import time


def has_letter(response, letter):
    return float(letter in response)


def sleeps(response):
    time.sleep(60)
"""
OPTION = """
_target_: mine.Echo
size: 8
system_prompt: null
chat_template_kwargs: {}
overlong_prompts: raise
"""


def train(folder, *overrides, flags=()):
    (folder / "mine.py").write_text(TASK)
    (folder / "my_rewards.py").write_text(REWARDS)
    (folder / "my_conf" / "task").mkdir(parents=True, exist_ok=True)
    (folder / "my_conf" / "task" / "echo.yaml").write_text(OPTION)
    command = [
        sys.executable,
        "-m",
        "tpg.train",
        *flags,
        "--config-dir",
        "my_conf",
        "debug=fast",
        "task=echo",
        *overrides,
    ]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300)


def rows(folder):
    with (folder / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_users_task_and_reward_train_from_their_folder(tmp_path):
    done = train(
        tmp_path, "task.size=10", "reward_model=[function]", "reward_model.function.function=my_rewards:has_letter",
        "run_dir=run",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "6 prompts to train on, 4 held out" in done.stdout
    assert [row["iteration"] for row in rows(tmp_path / "run")] == ["1", "2"]
    assert {float(row["completions/unscored"]) for row in rows(tmp_path / "run")} == {0.0}


def test_a_hanging_reward_leaves_everything_unscored_and_the_run_goes_on(tmp_path):
    done = train(
        tmp_path, "reward_model=[function]", "reward_model.function.function=my_rewards:sleeps",
        "reward_model.function.timeout_s=1", "run_dir=run", "evaluation.every=0", "rollout.prompts=1",
        "rollout.responses_per_prompt=2", "reward_workers=1",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "reward_model.function left responses unscored: no value within 1 s" in done.stdout
    assert [float(row["completions/unscored"]) for row in rows(tmp_path / "run")] == [2.0, 2.0]


def test_a_multirun_makes_a_folder_a_job_and_outlives_a_bad_one(tmp_path):
    done = train(
        tmp_path, "reward_model=[function]", "reward_model.function.function=my_rewards:has_letter",
        "algorithm=rloo,remax", "rollout.responses_per_prompt=1,2", "hydra.sweep.dir=sweep", flags=["-m"],
    )  # fmt: skip
    assert (tmp_path / "sweep").is_dir(), done.stderr
    folders = sorted(path.name for path in (tmp_path / "sweep").glob("algorithm_*"))
    assert len(folders) == 3
    assert done.stderr.count("rollout.responses_per_prompt=1: estimator RLOO compares") == 1
    assert done.returncode == 2
    assert all(len(rows(tmp_path / "sweep" / name)) == 2 for name in folders)


def test_a_stop_in_the_very_first_rollout_leaves_its_boundary(tmp_path):
    done = train(
        tmp_path, "reward_model=[function]", "reward_model.function.function=my_rewards:has_letter", "run_dir=run",
        "evaluation.every=0", "+callbacks.stop._target_=mine.AskToStop",
    )  # fmt: skip
    assert done.returncode == 130, done.stderr
    assert "interrupted; continue with" in done.stderr
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["iteration-000000.ckpt"]
