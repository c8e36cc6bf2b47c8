"""The conversation with workers, which here are real processes that only pretend to train."""

import sys
from pathlib import Path

import pytest
from workloads import workload

from benchmarks.common import trl_environment
from benchmarks.common.workers import Worker, WorkerFailed, environment
from benchmarks.iteration.turns import Commands, UnequalWork, best_trl_rows, measured
from tpg.errors import UserError

FAKE = """
import os, sys, time
from pathlib import Path
from benchmarks.common.protocol import Channel, served
from benchmarks.common.workload import work_done

side, diary, mood = sys.argv[1:]

def work(workload, channel):
    print("this is not part of the conversation")
    channel.answer(versions={}, threads=os.environ["OMP_NUM_THREADS"])
    for turn in range(100):
        channel.request()
        with open(diary, "a") as file:
            file.write(f"{side}{turn} ")
        if turn == 1 and mood == "raises":
            raise MemoryError("cannot allocate memory")
        if turn == 1 and mood == "exits":
            print("the last words", file=sys.stderr, flush=True)
            os._exit(3)
        if turn == 1 and mood == "is killed":
            os.kill(os.getpid(), 9)
        if turn == 1 and mood == "sleeps":
            time.sleep(60)
        length = workload.response_tokens - (mood == "cuts")
        prompts = [p for p in workload.prompts for _ in range(workload.responses_per_prompt)]
        update = 1.0 + abs(workload.responses_per_microbatch - 16)
        seconds = {"generate": 1.0, "reward": 0.0, "update": update, "iteration": 1.0 + update}
        done = work_done(prompts, [length] * len(prompts), len(prompts), 1)
        channel.answer(seconds=seconds, tokens=12, memory_bytes=turn, work=done)

served(work)
"""


@pytest.fixture
def commands(tmp_path):
    def make(timeout_s=60.0, **moods):
        script = tmp_path / "fake.py"
        script.write_text(FAKE)
        by_side = {
            side: [sys.executable, str(script), side, str(tmp_path / "diary"), mood] for side, mood in moods.items()
        }
        return Commands(by_side, tmp_path / "logs", timeout_s, lambda text: None)

    return make


def both():
    return {"trl": workload(), "ours": workload(threads=2)}


def test_sides_take_turns_and_the_first_is_not_counted(commands, tmp_path):
    sides, ready = measured(commands(trl="well", ours="well"), both(), 2, "grpo")
    assert (tmp_path / "diary").read_text() == "trl0 ours0 trl1 ours1 trl2 ours2 "
    assert [run["memory_bytes"] for run in sides["trl"].runs] == [1, 2]
    assert sides["ours"].ok
    assert (ready["trl"]["threads"], ready["ours"]["threads"]) == ("1", "2")
    assert (tmp_path / "logs" / "grpo-trl.log").read_text() == "this is not part of the conversation\n"


@pytest.mark.parametrize(
    ("mood", "message", "out_of_memory"),
    [
        ("raises", "trl: MemoryError: cannot allocate memory", True),
        ("exits", "trl ended with code 3, its last words: the last words; log: ", False),
        ("is killed", "trl was killed, as happens when memory runs out; log: ", True),
    ],
)
def test_a_side_that_fails_leaves_the_other_its_turns(commands, tmp_path, mood, message, out_of_memory):
    sides, _ = measured(commands(trl=mood, ours="well"), both(), 2, "grpo")
    assert (tmp_path / "diary").read_text() == "trl0 ours0 trl1 ours1 ours2 "
    assert sides["trl"].error.startswith(message)
    assert sides["trl"].out_of_memory is out_of_memory
    assert sides["trl"].medians() is None
    assert len(sides["ours"].runs) == 2
    assert sides["ours"].error is None


def test_trls_fastest_micro_batch_is_found(commands, tmp_path):
    many = workload(responses_per_prompt=32, responses_per_microbatch=None)
    assert best_trl_rows(commands(trl="well", ours="well"), many) == (16, {8: 10.0, 16: 2.0, 32: 18.0})
    assert (tmp_path / "diary").read_text() == "trl0 trl1 " * 3


def test_other_work_ends_the_comparison(commands):
    with pytest.raises(UnequalWork, match=r"^grpo, ours: shortest: asked for 3, done 2$"):
        measured(commands(trl="well", ours="cuts"), both(), 1, "grpo")


def test_a_side_that_does_not_answer_is_given_up(commands, tmp_path):
    made = commands(timeout_s=20.0, ours="sleeps")
    with made.worker("ours", workload(), "grpo") as worker:
        worker.iteration()
        worker.timeout_s = 0.5
        with pytest.raises(WorkerFailed, match="ours gave no answer in 0 s"):
            worker.iteration()
        worker._process.kill()


def test_a_worker_that_cannot_start_says_why(tmp_path):
    command = [sys.executable, "-c", "raise ValueError('no such model')"]
    with pytest.raises(WorkerFailed, match="its last words: ValueError: no such model"):  # noqa: SIM117
        with Worker("ours", command, workload(), tmp_path / "log", 20.0):
            pass


def test_workers_run_quietly_on_the_threads_they_are_given():
    made = environment(3, {"PYTHONPATH": "/mine", "HOME": "/home"})
    assert made["OMP_NUM_THREADS"] == "3"
    assert made["OMP_WAIT_POLICY"] == "passive"
    assert made["PYTHONPATH"].split(":") == [str(Path(__file__).parents[2]), "/mine"]
    assert made["HOME"] == "/home"


def test_trls_environment_is_made_once(tmp_path, monkeypatch):
    commands, said = [], []

    def pretend(command):
        commands.append(command)
        (tmp_path / "trl").mkdir(exist_ok=True)
        (tmp_path / "trl" / "pyvenv.cfg").touch()

    versions = {"torch": "2.13.0+cpu", "transformers": "5.23.0"}
    monkeypatch.setattr(trl_environment, "_run", pretend)
    monkeypatch.setattr(trl_environment, "_imports", lambda python: bool(commands))
    monkeypatch.setattr(trl_environment.metadata, "version", versions.__getitem__)
    for _ in range(2):
        python = trl_environment.python_with_trl(str(tmp_path / "trl"), said.append)
        assert python == tmp_path / "trl" / "bin" / "python"
    assert commands[0] == [sys.executable, "-m", "venv", str(tmp_path / "trl")]
    assert commands[1][-3:] == ["trl==1.16.0", "torch==2.13.0", "transformers==5.23.0"]
    assert len(commands) == 2
    assert len(said) == 2


def test_an_environment_is_not_made_over_something_else(tmp_path):
    (tmp_path / "thesis.txt").touch()
    with pytest.raises(UserError, match="holds something else than an environment"):
        trl_environment.python_with_trl(str(tmp_path), print)
    python = tmp_path / "thesis.txt"
    with pytest.raises(UserError, match=r"cannot import trl; pip install trl==1\.16\.0 there"):
        trl_environment.python_with_trl(str(python), print)
