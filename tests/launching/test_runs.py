"""Runs of several real processes: started, refused, stopped, killed; no rank outlives the run."""

import csv
import os
import signal
import subprocess
import sys
import time

import pytest
from process_trees import alive, descendants, gone, ranks_of
from small_runs import TINY, TWO

from tpg.launching.processes import OF_A_RANK

ENDLESS = [*TWO, "iterations=100000", "evaluation.every=0"]
TORCHRUN = ["torch.distributed.run", "--standalone", "--local-addr=127.0.0.1", "--nproc-per-node=2"]


class Started:
    """A command in a process of its own, with what it has said."""

    def __init__(self, folder, module, *arguments, **variables):
        self.folder = folder
        self.log = folder.with_name(f"{folder.name}.log")
        self.seen = set()
        plain = {name: value for name, value in os.environ.items() if not OF_A_RANK.fullmatch(name)}
        own = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive", "HF_HUB_OFFLINE": "1", "COLUMNS": "200"}
        with self.log.open("a") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", *module, *arguments],
                **{"stdout": log, "stderr": log, "cwd": folder.parent, "env": {**plain, **own, **variables}},
                start_new_session=True,
            )

    def said(self):
        return self.log.read_text()

    def rows(self):
        path = self.folder / "metrics.csv"
        if not path.exists():
            return []
        with path.open(newline="") as file:
            return list(csv.DictReader(file))

    def until(self, holds):
        """Wait; the processes of the run are known then."""
        deadline = time.monotonic() + 240
        while self.process.poll() is None and not holds() and time.monotonic() < deadline:
            time.sleep(0.05)
        assert self.process.poll() is None, self.said()[-3000:]
        assert holds(), self.said()[-3000:]
        self.seen.update(descendants(self.process.pid))
        return self

    def ended(self, code, within=240):
        """With this code, and nothing left behind."""
        assert self.process.wait(within) == code, self.said()[-3000:]
        assert gone(self.seen)
        return self.said()

    def kill(self):
        for pid in {*self.seen, *descendants(self.process.pid), self.process.pid}:
            if alive(pid):
                os.kill(pid, signal.SIGKILL)
        self.process.wait(60)


@pytest.fixture
def start(tmp_path):
    """Starts a command with a folder; whatever is left of it is killed in the end."""
    begun = []

    def call(module, *arguments, name="run", **variables):
        module = [module] if isinstance(module, str) else module
        begun.append(Started(tmp_path / name, module, *arguments, f"run_dir={tmp_path / name}", **variables))
        return begun[-1]

    yield call
    for started in begun:
        started.kill()


def test_a_mistake_in_the_ranks_is_one_line_and_leaves_no_folder(start, tmp_path):
    (tmp_path / "data.jsonl").write_text('{"question": "a", "answer": "b"}\n' * 4)
    given = ["task=dataset", "task.path=data.jsonl", "task.prompt=nothing", "reward_model=[exact_answer,length]"]
    told = start("tpg.train", *TWO, *given).ended(2)
    (line,) = told.splitlines()
    assert line.startswith("error: task")
    assert not (tmp_path / "run").exists()


@pytest.mark.long
def test_two_processes_give_what_one_gives(start):
    alone = start("tpg.train", *TINY, "trainer=cpu", "iterations=3", name="alone")
    alone.ended(0)
    two = start("tpg.train", *TWO, "iterations=3", name="two")
    told = two.ended(0)
    assert told.count("iteration 3/3") == 1
    assert "rank" not in told
    assert [row["reward"] for row in two.rows()] == [row["reward"] for row in alone.rows()]


@pytest.mark.long
def test_a_killed_rank_ends_the_run_and_is_named(start):
    run = start("tpg.train", *ENDLESS)
    run.until(lambda: len(run.rows()) >= 2)
    os.kill(ranks_of(run.process.pid, "tpg.worker")[1], signal.SIGKILL)
    told = run.ended(1, within=60)
    last = told.splitlines()[-1]
    assert last == "error: rank 1 of 2 was killed by SIGKILL; the machine may have run out of memory"
    assert "Traceback" not in told


@pytest.mark.long
def test_no_rank_outlives_the_process_that_launched_it(start):
    run = start("tpg.train", *ENDLESS)
    run.until(lambda: len(run.rows()) >= 2)
    assert len(ranks_of(run.process.pid, "tpg.worker")) == 2
    run.process.kill()
    run.ended(-signal.SIGKILL)


@pytest.mark.long
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1], ids=lambda number: number.name)
def test_a_signal_leaves_a_checkpoint_from_which_the_run_goes_on(start, tmp_path, number):
    run = start("tpg.train", *ENDLESS, "checkpoint.every=100000")
    run.until(lambda: len(run.rows()) >= 2)
    (run.process.send_signal if number != signal.SIGINT else lambda n: os.killpg(run.process.pid, n))(number)
    told = run.ended(128 + number)
    assert told.splitlines()[-1] == f"interrupted; continue with: python -m tpg.train resume={tmp_path / 'run'}"
    (checkpoint,) = (tmp_path / "run" / "checkpoints").glob("*.ckpt")
    stood = int(checkpoint.stem.split("-")[1])
    if number == signal.SIGTERM:
        resumed = Started(run.folder, ["tpg.train"], f"resume={run.folder}", f"iterations={stood + 1}")
        try:
            resumed.ended(0)
        finally:
            resumed.kill()
        assert [int(row["iteration"]) for row in run.rows()] == list(range(1, stood + 2))


@pytest.mark.long
def test_signals_to_every_process_of_a_job_stop_it_in_order(start, tmp_path):
    run = start("tpg.train", *ENDLESS, "checkpoint.every=100000", SLURM_JOB_ID="17")
    run.until(lambda: len(run.rows()) >= 2)
    for pid in [*descendants(run.process.pid), run.process.pid]:
        os.kill(pid, signal.SIGUSR1)
    told = run.ended(138)
    assert "warning: scontrol requeue 17 failed" in told
    assert len(list((tmp_path / "run" / "checkpoints").glob("*.ckpt"))) == 1


CRASH = """
import os
from lightning.pytorch import Callback

class Crash(Callback):
    def on_train_epoch_end(self, trainer, pl_module):
        if os.environ["RANK"] == "1":
            print("said by rank 1")
            1 / 0
"""


@pytest.mark.long
def test_an_error_on_one_rank_ends_all_with_its_traceback(start, tmp_path):
    (tmp_path / "mine.py").write_text(CRASH)
    told = start("tpg.train", *ENDLESS, "+callbacks.crash._target_=mine.Crash").ended(1)
    lines = told.splitlines()
    assert lines[-1] == "error: rank 1 of 2: ZeroDivisionError: division by zero"
    assert "[rank 1] ZeroDivisionError: division by zero" in lines
    assert "said by rank 1" not in told
    assert "ChildFailedError" not in told


@pytest.mark.long
def test_processes_of_torchrun_take_part(start):
    run = start([*TORCHRUN, "-m", "tpg.train"], *TWO, "iterations=2")
    told = run.ended(0)
    assert told.count("iteration 2/2") == 1
    assert len(run.rows()) == 2


@pytest.mark.long
def test_processes_of_torchrun_with_other_arguments_are_refused(start, tmp_path):
    script = 'exec "$0" -m tpg.train "$@" optimizer.lr=0.$((RANK+1))'
    run = start([*TORCHRUN, "--no-python", "bash", "-c", script, sys.executable], *TWO, "iterations=2")
    told = run.ended(1)
    assert [line for line in told.splitlines() if "optimizer.lr" in line] == [
        "error: optimizer.lr: rank 0 was given 0.1 and rank 1 0.2; start every process with the same arguments"
    ]
    assert not (tmp_path / "run").exists()


@pytest.mark.long
@pytest.mark.parametrize("launcher", ["basic", "joblib", "submitit_local"])
def test_jobs_of_a_sweep_have_processes_of_their_own(start, tmp_path, launcher):
    sweep = start("tpg.train", "-m", f"hydra/launcher={launcher}", *TWO, "iterations=1", "seed=0,1")
    told = sweep.ended(0)
    assert "2 jobs in" in told
    for seed in (0, 1):
        assert (tmp_path / "run" / f"seed_{seed}" / "summary.json").exists()


@pytest.mark.long
def test_a_sweep_of_runs_of_two_processes_stops_as_one(start, tmp_path):
    sweep = start("tpg.train", "-m", *ENDLESS, "seed=0,1", "checkpoint.every=100000")
    sweep.until((tmp_path / "run" / "seed_0" / "metrics.csv").exists)
    sweep.process.terminate()
    told = sweep.ended(143)
    assert "continues the sweep" in told
    assert len(list((tmp_path / "run" / "seed_0" / "checkpoints").glob("*.ckpt"))) == 1
    assert not (tmp_path / "run" / "seed_1").exists()
