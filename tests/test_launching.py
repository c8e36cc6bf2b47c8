"""Runs of several processes: started, refused, stopped, killed; no rank outlives the run."""

import csv
import io
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from process_trees import descendants, ranks_of

import tpg.launching.spec
import tpg.sweep
import tpg.train
from tpg.errors import Interrupted, UserError
from tpg.launching.exchange import Exchange, Marked, write
from tpg.launching.processes import OF_A_RANK, Death, _concluded, _failure
from tpg.training.parallel.ranks import Ranks
from tpg.training.pruning import Pruned

TINY = [
    *["policy=tiny", "policy.hidden_size=32", "policy.layers=2", "task=sort", "logger=[csv]", "reward_workers=2"],
    *["reward_model=[sorted_digits,length]", "reward_model.length.target_tokens=6", "trainer.precision=32-true"],
    *["rollout.prompts=4", "rollout.responses_per_prompt=4", "rollout.max_response_tokens=10"],
    *["rollout.max_prompt_tokens=32", "optimizer.lr=1e-3", "evaluation.every=2", "evaluation.prompts=8"],
]
TWO = [*TINY, "trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2"]
ENDLESS = [*TWO, "iterations=100000", "evaluation.every=0"]
TORCHRUN = ["torch.distributed.run", "--standalone", "--local-addr=127.0.0.1", "--nproc-per-node=2"]


# What needs no second process


@pytest.mark.parametrize(
    ("name", "tells_the_rank"),
    [
        ("RANK", True),
        ("LOCAL_WORLD_SIZE", True),
        ("MASTER_PORT", True),
        ("TORCHELASTIC_RUN_ID", True),
        ("SLURM_PROCID", True),
        ("CUDA_VISIBLE_DEVICES", False),
        ("MY_RANK", False),
        ("RANKING", False),
    ],
)
def test_only_what_says_which_rank_one_is_is_kept_from_the_ranks(name, tells_the_rank):
    assert bool(OF_A_RANK.fullmatch(name)) == tells_the_rank


def test_a_death_is_told_before_the_errors_that_it_caused():
    heard = {"kind": "failed", "message": "RuntimeError: closed", "traceback": "T", "heard": False, "time": 1.0}
    killed = "rank 1 of 2 was killed by SIGKILL; the machine may have run out of memory"
    assert str(_failure({0: heard, 1: {}}, {0: Death(1, 1), 1: Death(-9, 1)}, 1)) == killed


def test_a_rank_that_torchrun_killed_since_another_had_failed_is_not_the_cause():
    own = {"kind": "failed", "message": "ValueError: bad", "traceback": "T", "heard": False, "time": 1.0}
    deaths = {0: Death(-9, 31), 1: Death(1, 1)}
    assert str(_failure({0: {}, 1: own}, deaths, 1)) == "rank 1 of 2: ValueError: bad"


def test_a_ranks_own_error_is_told_before_what_others_heard_of_it():
    heard = {"kind": "failed", "message": "RankError: rank 1: ...", "traceback": "T", "heard": True, "time": 1.0}
    own = {"kind": "failed", "message": "ValueError: bad", "traceback": "a\nb\n", "heard": False, "time": 2.0}
    error = _failure({0: heard, 1: own}, {0: Death(1, 1), 1: Death(1, 2)}, 1)
    assert str(error) == "rank 1 of 2: ValueError: bad"
    assert error.__notes__ == ["[rank 1] a\n[rank 1] b"]


def test_ranks_that_leave_no_word_are_told_by_their_codes():
    assert str(_failure({0: {}, 1: {}}, {1: Death(3, 1)}, 1)) == 'the ranks ended without a word: {"1": 3}'


@pytest.mark.parametrize(
    ("left", "raised"),
    [
        ({"kind": "mistake", "message": "task: bad"}, UserError("task: bad")),
        ({"kind": "interrupted", "signal": 15}, Interrupted(15)),
        ({"kind": "pruned", "iteration": 2, "metric": "reward", "value": 0.5}, Pruned(2, "reward", 0.5)),
    ],
    ids=["mistake", "interrupted", "pruned"],
)
def test_what_ended_rank_0_ends_the_process_that_launched_it(tmp_path, left, raised):
    exchange = Exchange(tmp_path)
    write(exchange.outcome(0), left)
    with pytest.raises(type(raised)) as found:
        _concluded(exchange, 2, 0)
    assert found.value.args == raised.args


def test_the_mistake_of_one_rank_alone_is_told_whatever_the_main_one_heard(tmp_path):
    exchange = Exchange(tmp_path)
    heard = {"kind": "failed", "message": "RuntimeError: closed by peer", "traceback": "T", "heard": False, "time": 2.0}
    write(exchange.outcome(0), heard)
    write(exchange.outcome(1), {"kind": "mistake", "message": "out of memory on rank 1", "time": 1.0})
    with pytest.raises(UserError, match="out of memory on rank 1"):
        _concluded(exchange, 2, 1)


def test_lines_are_marked_once():
    stream = io.StringIO()
    marked = Marked(stream, "[rank 1] ")
    for text in ("a\nb", "c\n", "", "d\n"):
        marked.write(text)
    assert stream.getvalue() == "[rank 1] a\n[rank 1] bc\n[rank 1] d\n"


def test_a_rank_is_answered_by_the_process_that_launched_it(tmp_path):
    rank, launcher = Exchange(tmp_path), Exchange(tmp_path)
    heard = []

    def answer():
        while len(heard) < 2:
            waiting = launcher.asked()
            if waiting:
                heard.append(waiting)
                launcher.answer(len(heard) == 2)

    thread = threading.Thread(target=answer)
    thread.start()
    assert [rank.ask(1, 0.5), rank.ask(2, 0.25)] == [False, True]
    thread.join()
    assert heard == [(1, 0.5), (2, 0.25)]


def test_a_process_ends_when_its_parent_was_killed(tmp_path):
    child = (
        "import os, sys, time; from tpg.launching.exchange import end_with; end_with(int(sys.argv[1]));"
        " print(os.getpid(), flush=True); time.sleep(60)"
    )
    parent = f"import os, subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}, str(os.getpid())])"
    process = subprocess.Popen([sys.executable, "-c", parent], stdout=subprocess.PIPE, text=True)
    pid = int(process.stdout.readline())
    process.kill()
    process.wait(10)
    assert gone([pid])


def test_several_nodes_are_not_begun_by_one_process(entry, tmp_path):
    code, _, err = entry(tpg.train, *TWO, "trainer.num_nodes=3", "run_dir=a")
    assert code == 2
    (line,) = err
    assert line.startswith("error: trainer.num_nodes=3: this process was started alone and reaches no other node; ")
    assert "srun --nodes=3 --ntasks-per-node=2 python -m tpg.train" in line
    assert "torchrun --nnodes=3 --nproc-per-node=2 " in line
    assert not (tmp_path / "a").exists()


def test_several_nodes_are_refused_before_a_sweep_begins(entry, tmp_path):
    code, _, err = entry(tpg.train, "-m", *TWO, "trainer.num_nodes=2", "seed=0,1", "run_dir=a")
    assert code == 2
    assert len(err) == 1
    assert err[0].startswith("error: trainer.num_nodes=2: ")
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize(("module", "arguments"), [(tpg.train, ["-m", "seed=0,1"]), (tpg.sweep, ["sweep=lr_kl_group"])])
@pytest.mark.parametrize(
    "variables",
    [{"WORLD_SIZE": "2", "RANK": "1"}, {"SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": "0"}],
    ids=["torchrun", "srun"],
)
def test_a_sweep_is_led_by_one_process(entry, monkeypatch, tmp_path, module, arguments, variables):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    code, _, err = entry(module, *arguments, *TINY, "run_dir=a")
    assert code == 2
    (line,) = err
    assert "2 processes were started together (torchrun, srun), and a sweep is led by one; start it alone" in line
    assert not (tmp_path / "a").exists()


# SLURM


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


# Taking part, as torchrun starts it


class Others(Ranks):
    """Rank 0 of two, the other of which composed the same but for what `said` changes."""

    def __init__(self, said):
        super().__init__(0, 2)
        object.__setattr__(self, "said", said)

    def each(self, work):
        mine = work()
        return [mine, self.said(mine)] if isinstance(mine, dict) and "compared" in mine else [mine, mine]


@pytest.fixture
def together(monkeypatch):
    """This process as rank 0 of two; `together(said)` tells how the other's word differs."""
    begun = []

    def meet(said):
        monkeypatch.setenv("WORLD_SIZE", "2")
        monkeypatch.setattr("tpg.training.parallel.ranks.joined", lambda *_: Others(said))
        monkeypatch.setattr(
            "tpg.launching.spec.carry_out", lambda spec, ranks: begun.append(spec) or {"reward/last": 1}
        )
        return begun

    return meet


def test_rank_0_decides_what_depends_on_time(entry, together, tmp_path):
    compared = []
    begun = together(lambda mine: compared.append(mine["compared"]) or {**mine, "text": "", "path": tmp_path / "other"})
    code, _, err = entry(tpg.train, *TWO, "run_dir=a", "logger=[wandb]", "logger.wandb.group='${now:%f}'")
    assert (code, err) == (0, [])
    assert begun[0].path == tmp_path / "a"
    assert yaml.safe_load(compared[0])["logger"]["wandb"]["group"] == "%f"
    assert yaml.safe_load(begun[0].text)["logger"]["wandb"]["group"].isdigit()


def test_ranks_of_other_arguments_are_refused(entry, together, tmp_path):
    together(lambda mine: mine | {"compared": mine["compared"].replace("lr: 0.001", "lr: 0.5")})
    code, _, err = entry(tpg.train, *TWO, "run_dir=a")
    assert code == 2
    assert err == [
        "error: optimizer.lr: rank 0 was given 0.001 and rank 1 0.5; start every process with the same arguments"
    ]
    assert not (tmp_path / "a").exists()


def test_as_many_processes_take_part_as_the_trainer_counts(entry, together):
    together(lambda mine: mine)
    code, _, err = entry(tpg.train, *TWO, "trainer.devices=4", "run_dir=a")
    assert code == 2
    assert err == [
        "error: trainer.devices=4: 2 processes were started together, and trainer.devices x trainer.num_nodes is 4;"
        " start 4, or give trainer.devices=<those of a node>"
    ]
    code, _, err = entry(tpg.train, *TINY, "trainer=cpu", "run_dir=a")
    assert code == 2
    assert err[0].endswith("is 1; start one alone, or give trainer=ddp trainer.devices=<those of a node>")


# Processes


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def gone(pids, within=60):
    """Whether these processes end in time."""
    deadline = time.monotonic() + within
    while any(map(alive, pids)) and time.monotonic() < deadline:
        time.sleep(0.05)
    return not any(map(alive, pids))


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
