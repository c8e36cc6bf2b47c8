"""A sweep by `-m`: a folder a job, continued where it stopped; a bad job ends nothing but itself.

The runs here take no time; real ones are in test_multirun_processes.py.
"""

import json
import os
import signal
import sys
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from types import SimpleNamespace

import pytest
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf
from small_sweeps import JOBS, TINY, table

import tpg.audit.__main__
import tpg.audit.run
import tpg.jobs.entry
import tpg.launching.spec
import tpg.train
from tpg.errors import Interrupted, UserError
from tpg.jobs.records import Job
from tpg.reporting.sweep_table import curves


@pytest.fixture
def sweep(monkeypatch, tmp_path):
    """`tpg.train -m` in this process, whose runs do what `sweep.acts[seed]` says: exit code, output, errors."""
    acts, ran = {}, []

    def run(experiment, prepared, folder, config, stop_file=None, ranks=None):
        ran.append(experiment.seed)
        acts.get(experiment.seed, lambda: None)()
        folder.add_row({"iteration": 1, "reward": 0.25})
        folder.add_row({"iteration": 2, "reward": 0.5 + experiment.seed})
        return {"reward/last": 0.5 + experiment.seed}

    def call(*overrides):
        ran.clear()
        GlobalHydra.instance().clear()
        monkeypatch.setattr(sys, "argv", ["tpg-train", "-m", *TINY, *overrides])
        out, err = StringIO(), StringIO()
        code = 0
        with redirect_stdout(out), redirect_stderr(err):
            try:
                tpg.train.main()
            except SystemExit as end:
                code = end.code
        return SimpleNamespace(code=code, out=out.getvalue(), err=err.getvalue().splitlines(), ran=list(ran))

    call.acts = acts
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(tpg.jobs.entry, "WANTS_TRACEBACK", False)
    monkeypatch.setattr(tpg.launching.spec, "prepare", lambda experiment: None)
    monkeypatch.setattr(tpg.launching.spec, "run", run)
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield call
    for number, handler in handlers.items():
        signal.signal(number, handler)
    GlobalHydra.instance().clear()


def fail(error):
    raise error


def test_every_job_has_its_folder_and_a_row_in_the_table(sweep, tmp_path):
    done = sweep("algorithm=grpo,rloo", "seed=range(0,2)", "run_dir=s")
    assert done.code == 0
    assert done.err == []
    assert done.ran == [0, 1, 0, 1]
    assert sorted(path.parent.name for path in (tmp_path / "s").glob("*/config.yaml")) == JOBS
    rows = table(done.out)
    assert [row[:3] for row in rows] == [
        ["0", "algorithm=grpo seed=0", "0.250 -> 0.500"],
        ["1", "algorithm=grpo seed=1", "0.250 -> 1.500"],
        ["2", "algorithm=rloo seed=0", "0.250 -> 0.500"],
        ["3", "algorithm=rloo seed=1", "0.250 -> 1.500"],
    ]
    assert [row[-2:] for row in rows] == [["finished", name] for name in JOBS]


def test_finished_jobs_are_skipped_and_new_ones_join_them(sweep):
    sweep("seed=0,1", "algorithm=grpo", "run_dir=s")
    done = sweep("algorithm=grpo", "seed=0,1,2", "run_dir=s")
    assert done.code == 0
    assert done.ran == [2]
    assert "job 0 (seed=0): finished before, skipped" in done.out
    assert [row[-2:] for row in table(done.out)] == [
        ["skipped", "seed_0"],
        ["skipped", "seed_1"],
        ["finished", "seed_2"],
    ]
    assert sweep("algorithm=grpo", "seed=0,1,2", "run_dir=s").ran == []


def test_hydras_own_key_names_the_sweep_too(sweep, tmp_path):
    sweep("seed=0,1", "hydra.sweep.dir='my sweep, \\'a\\''")
    assert (tmp_path / "my sweep, 'a'" / "seed_1" / "config.yaml").is_file()
    assert sweep("seed=0,1", "run_dir='my sweep, \\'a\\''").ran == []


def test_a_failure_ends_its_own_job_and_is_tried_again(sweep, tmp_path):
    sweep.acts[0] = lambda: fail(UserError("policy: is  not\nthere"))
    sweep.acts[1] = lambda: 1 / 0
    done = sweep("seed=0,1,2", "run_dir=s")
    assert done.code == 2
    assert done.ran == [0, 1, 2]
    kept = tmp_path / "s" / ".jobs" / "seed_1.traceback.txt"
    assert done.err == [
        "error: job 0 (seed=0): policy: is not there",
        f"error: job 1 (seed=1): ZeroDivisionError: division by zero (traceback: {kept})",
        "the same command with run_dir=s continues the sweep",
    ]
    assert "in <lambda>" in kept.read_text()
    assert [row[-2] for row in table(done.out)] == ["failed", "failed", "finished"]
    sweep.acts.pop(0)
    again = sweep("seed=0,1,2", "run_dir=s")
    assert again.code == 1
    assert again.ran == [0, 1]
    assert [row[-2] for row in table(again.out)] == ["finished", "failed", "skipped"]


def test_a_job_that_cannot_run_is_told_before_the_first_begins(sweep):
    done = sweep("kl=k3_in_loss", "kl.form=k2,k1,k3", "run_dir=s")
    assert done.code == 2
    assert done.ran == [0, 0]
    assert len(done.err) == 1
    assert done.err[0].startswith("error: job 1 (kl.form=k1): kl.form=k1: k1 in the loss has zero gradient")
    assert done.out.startswith("3 jobs in s; 1 refused, the others run\n")
    assert [row[1:] for row in table(done.out)][1] == ["kl.form=k1", "refused"]


def test_a_combination_given_twice_runs_once(sweep):
    done = sweep("seed=0,0", "run_dir=s")
    assert (done.code, done.err, done.ran) == (0, [], [0])


def test_a_mistake_in_every_job_is_told_once_and_nothing_is_made(sweep, tmp_path):
    done = sweep("algorithm=grpo,rloo", "seed=0,1", "optimizer.lr=-1")
    assert (done.code, done.out) == (2, "")
    assert done.err == ["error: optimizer.lr=-1: should be greater than 0"]
    assert list(tmp_path.iterdir()) == []


def test_a_sweep_of_nothing_is_a_mistake(sweep, tmp_path):
    done = sweep("experiment=glob(nothing*)", "run_dir=s")
    assert (done.code, done.ran) == (2, [])
    assert done.err == ["error: the sweep has no job: a glob(...) among its values matches no option"]
    assert list(tmp_path.iterdir()) == []


def test_a_value_that_does_not_compose_refuses_the_sweep(sweep):
    done = sweep("algorithm=rloo,grop", "run_dir=s")
    assert (done.code, done.ran) == (2, [])
    assert len(done.err) == 1
    assert done.err[0].startswith("error: algorithm=grop: no such option; there are ")


def test_a_folder_with_another_config_is_refused_by_key(sweep, tmp_path):
    sweep("seed=0,1", "run_dir=s", "iterations=2")
    done = sweep("seed=0,1,2", "run_dir=s", "iterations=3", "optimizer.lr=2e-3")
    assert (done.code, done.ran) == (2, [2])
    assert done.err[0] == (
        f"error: job 0 (seed=0): iterations=3: {tmp_path}/s/seed_0 holds a run with iterations=2;"
        " also other: optimizer.lr; give the sweep another run_dir, or that run's config"
    )
    assert OmegaConf.load(tmp_path / "s" / "seed_0" / "config.yaml").iterations == 2
    again = sweep("seed=0,1", "run_dir=s", "iterations=2")
    assert (again.code, again.ran) == (0, [])
    assert [row[-2] for row in table(again.out)] == ["skipped", "skipped"]


def test_a_folder_that_was_being_made_is_made_anew(sweep, tmp_path):
    (tmp_path / "s" / "seed_0" / "checkpoints").mkdir(parents=True)
    assert sweep("seed=0,1", "run_dir=s").code == 0
    (tmp_path / "t" / "seed_0").mkdir(parents=True)
    (tmp_path / "t" / "seed_0" / "notes.txt").write_text("mine")
    done = sweep("seed=0,1", "run_dir=t")
    assert (done.code, done.ran) == (2, [1])
    assert "seed_0 is not empty" in done.err[0]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_stops_the_sweep_and_the_same_command_continues_it(sweep, number, code):
    sweep.acts[1] = lambda: fail(Interrupted(number))
    done = sweep("seed=0,1,2", "run_dir=s")
    assert (done.code, done.ran) == (code, [0, 1])
    assert [row[-2] if len(row) > 4 else row[-1] for row in table(done.out)][:2] == ["finished", "interrupted"]
    assert [row[1:] for row in table(done.out)][2:] == [["seed=2", "not begun"]]
    assert done.err == ["the same command with run_dir=s continues the sweep"]
    sweep.acts.clear()
    again = sweep("seed=0,1,2", "run_dir=s")
    assert (again.code, again.ran) == (0, [1, 2])


def test_a_signal_between_two_jobs_is_not_lost(sweep, monkeypatch):
    def finished(record):
        os.kill(os.getpid(), signal.SIGTERM)

    note = Job.note
    monkeypatch.setattr(
        Job, "note", lambda job, state, **facts: (note(job, state, **facts), state == "finished" and finished(job))[0]
    )
    done = sweep("seed=0,1,2", "run_dir=s")
    assert (done.code, done.ran) == (143, [0])


def test_jobs_are_grouped_and_tagged(sweep, monkeypatch):
    seen = []
    monkeypatch.setattr(tpg.launching.spec, "prepare", lambda experiment: seen.append(experiment.logger["wandb"]))
    sweep("logger=[wandb]", "algorithm=grpo,rloo", "seed=7", "run_dir=out/first", "logger.wandb.tags=[mine]")
    assert [(options.group, options.tags) for options in seen] == [
        ("first", ["mine", "algorithm=grpo"]),
        ("first", ["mine", "algorithm=rloo"]),
    ]
    sweep("logger=[wandb]", "seed=7,8", "run_dir=out/second", "logger.wandb.group=own")
    assert [(options.group, options.tags) for options in seen[2:]] == [("own", ["seed=7"]), ("own", ["seed=8"])]


def test_a_job_that_leaves_no_word_fails_the_sweep(sweep, monkeypatch):
    note = Job.note
    monkeypatch.setattr(Job, "note", lambda job, state, **facts: job.number == 1 or note(job, state, **facts))
    done = sweep("seed=0,1,2", "run_dir=s")
    assert done.code == 1
    assert done.err[0] == "error: 1 of 3 jobs never began"


def test_audits_are_continued_too(sweep, monkeypatch):
    ran = []

    def on_worlds(experiment, estimators, choices, folder, stored):
        ran.append(folder.name)
        folder.mkdir()
        (folder / "audit.json").write_text("[]")
        return 0.5

    monkeypatch.setattr(tpg.audit.run, "on_worlds", on_worlds)
    monkeypatch.setattr(tpg.train, "main", tpg.audit.__main__.main)
    assert sweep("algorithm=grpo,rloo", "run_dir=s").code == 0
    done = sweep("algorithm=grpo,rloo", "run_dir=s")
    assert (done.code, ran) == (0, ["algorithm_grpo", "algorithm_rloo"])
    assert [row[-2] for row in table(done.out)] == ["skipped", "skipped"]
    assert sweep("algorithm=grpo,rloo", "run_dir=s", "seed=3").code == 2


def test_rewards_of_a_run_that_has_none_yet(tmp_path):
    assert curves(tmp_path) is None
    (tmp_path / "metrics.csv").write_text("iteration,reward,eval/reward\n1,0.25,0.125\n2,0.5,\n")
    assert curves(tmp_path) == ("0.250 -> 0.500", "0.125 -> 0.125")
    (tmp_path / "summary.json").write_text(json.dumps({"eval/reward": 0.75}))
    assert curves(tmp_path) == ("0.250 -> 0.500", "0.125 -> 0.750")
