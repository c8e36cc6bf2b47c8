"""A sweep by `-m`: a folder a job, continued where it stopped; a bad job ends nothing but itself."""

import csv
import json
import os
import re
import signal
import subprocess
import sys
import time
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from types import SimpleNamespace

import pytest
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf

import tpg.audit.__main__
import tpg.audit.run
import tpg.jobs
import tpg.launching.spec
import tpg.train
from tpg.errors import Interrupted, UserError
from tpg.job_records import Job, Launch, job_name, swept_overrides
from tpg.reporting.sweep_table import curves

TINY = [
    *["policy=tiny", "policy.hidden_size=32", "policy.layers=2", "task=sort", "logger=[csv]", "trainer=cpu"],
    *["reward_model=[sorted_digits,length]", "reward_model.length.target_tokens=6", "reward_workers=1"],
    *["rollout.prompts=4", "rollout.responses_per_prompt=4", "rollout.max_response_tokens=10"],
    *["rollout.max_prompt_tokens=32", "optimizer.lr=1e-3", "evaluation.prompts=8", "checkpoint.every=1"],
]
FOUR = ["algorithm=grpo,rloo", "seed=range(0,2)", "iterations=2"]
JOBS = ["algorithm_grpo-seed_0", "algorithm_grpo-seed_1", "algorithm_rloo-seed_0", "algorithm_rloo-seed_1"]


# Names


def test_only_what_the_sweep_varies_or_its_sweeper_adds_names_a_job():
    command = ["task=sort", "seed=range(0,2)", "algorithm=grpo,rloo", "reward_model=[a,b]", "hydra/launcher=joblib"]
    of_job = ["task=sort", "seed=1", "algorithm=rloo", "reward_model=[a,b]", "optimizer.lr=0.1", "hydra.launcher.n=2"]
    assert swept_overrides(of_job, command) == ["algorithm=rloo", "optimizer.lr=0.1", "seed=1"]


@pytest.mark.parametrize(
    ("swept", "name"),
    [
        (["algorithm=grpo", "optimizer.lr=1e-5", "seed=3"], "algorithm_grpo-lr_1e-5-seed_3"),
        (["a.clip=1", "b.clip=2"], "a.clip_1-b.clip_2"),
        (["+trainer.devices=1"], "devices_1"),
        (["kl=null"], "kl_null"),
        ([], ""),
    ],
)
def test_a_name_says_key_and_value(swept, name):
    assert job_name(swept) == name


def test_names_that_folders_cannot_have_stay_apart():
    names = [job_name([f"task.path={path}"]) for path in ("a/b", "a-b", "a b", "x" * 300, "x" * 301)]
    assert len(set(names)) == 5
    assert names[1] == "path_a-b"
    assert all(re.fullmatch(r"[\w.+-]{1,100}", name) for name in names)


def test_a_job_that_another_process_runs_is_left_to_it(tmp_path):
    launch = Launch(tmp_path, ["seed=0,1"], False)
    launch.begin()
    job = Job(launch, 0, ["seed=0"], None, "default")
    script = f"""
import sys
from pathlib import Path
from tpg.job_records import Job, Launch
job = Job(Launch.opened(Path({str(tmp_path)!r})), 0, ["seed=0"], None, "default")
with job.alone():
    job.note("running")
    print("held", flush=True)
    sys.stdin.read()
"""
    holder = subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout.readline() == "held\n"
        again = Job(launch, 0, ["seed=0"], None, "default")
        with pytest.raises(UserError, match=f"process {holder.pid} on .* is still running this job"), again.alone():
            pass
    finally:
        holder.kill()
        holder.communicate()
    with job.alone():
        pass


# The sweep's logic, with runs that take no time


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
    monkeypatch.setattr(tpg.jobs, "WANTS_TRACEBACK", False)
    monkeypatch.setattr(tpg.launching.spec, "prepare", lambda experiment: None)
    monkeypatch.setattr(tpg.launching.spec, "run", run)
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield call
    for number, handler in handlers.items():
        signal.signal(number, handler)
    GlobalHydra.instance().clear()


def table(out):
    """The cells of the closing table by job: number, overrides, reward, seconds, state, folder."""
    lines = out[out.index("\nsweep ") :].splitlines()[3:]
    return [re.split(r"\s{2,}", line.strip()) for line in lines]


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
    done = sweep("seed=0,1,2,3", "run_dir=s")
    assert (done.code, done.ran) == (code, [0, 1])
    assert [row[-2] if len(row) > 4 else row[-1] for row in table(done.out)][:2] == ["finished", "interrupted"]
    assert [row[1:] for row in table(done.out)][2:] == [["seed=2", "not begun"], ["seed=3", "not begun"]]
    assert done.err == ["the same command with run_dir=s continues the sweep"]
    sweep.acts.clear()
    again = sweep("seed=0,1,2,3", "run_dir=s")
    assert (again.code, again.ran) == (0, [1, 2, 3])


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


# Real runs in processes


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
