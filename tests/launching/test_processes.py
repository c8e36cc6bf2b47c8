"""What processes tell each other and how their ends are told, without a second run."""

import io
import subprocess
import sys
import threading

import pytest
from process_trees import gone
from small_runs import TINY, TWO

import tpg.launching.spec
import tpg.sweep
import tpg.train
from tpg.errors import Interrupted, UserError
from tpg.launching.exchange import Exchange, Marked, write
from tpg.launching.processes import OF_A_RANK, Death, _concluded, _failure
from tpg.training.pruning import Pruned


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
