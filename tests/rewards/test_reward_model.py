"""The weighted sum, and what becomes of a response whose term misbehaves."""

import math
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from tpg.errors import UserError
from tpg.rewards.base import Failure, LoadedTerm, Sample, Scorer, Told
from tpg.rewards.function import Function
from tpg.rewards.length import LengthTarget
from tpg.rewards.match import ExactAnswer, LastNumber
from tpg.rewards.math_verify import MathVerify
from tpg.rewards.model import RewardModel, check_terms, load_scorers
from tpg.rewards.reasoning_gym import ReasoningGymScore

HERE = str(Path(__file__).parent)


@pytest.fixture(autouse=True)
def _importable(monkeypatch):
    monkeypatch.syspath_prepend(HERE)


def samples(*responses, **rest):
    return [Sample(prompt="", response=response, **rest) for response in responses]


def misbehaving(timeout_s=5.0):
    return {"user": Function(function="user_rewards:misbehave", timeout_s=timeout_s)}


def alive(process):
    """Whether a process runs; one that ended but was not yet collected does not."""
    try:
        return "\nState:\tZ" not in Path(f"/proc/{process}/status").read_text()
    except OSError:
        return False


def test_the_sum_is_weighted_and_a_kind_may_serve_twice():
    terms = {
        "answer": ExactAnswer(weight=2.0),
        "short": LengthTarget(target_tokens=2, tolerance_tokens=2, weight=0.5),
        "long": LengthTarget(target_tokens=8, tolerance_tokens=8, weight=-1.0),
    }
    with RewardModel(terms, workers=2) as model:
        rewards = model.score(
            [
                Sample(prompt="", response="7", token_ids=(1, 2), answer="7"),
                Sample(prompt="", response="7", token_ids=(1, 2, 3), answer="8"),
            ]
        )
    assert rewards.terms == {"answer": [1.0, 0.0], "short": [1.0, 0.5], "long": [0.25, 0.375]}
    assert rewards.total == [2.25, -0.125]
    assert rewards.scored == [True, True]
    assert rewards.failures == rewards.first_failure == {}


@pytest.mark.parametrize(
    ("response", "reason", "cause"),
    [
        ("raise", "raised", "LookupError: two lines"),
        ("exit", "raised", "SystemExit"),
        ("number as text", "raised", "TypeError: a reward must be a number, not '1'"),
        ("nan", "NaN", "the value is nan"),
        ("inf", "NaN", "the value is inf"),
        ("sleep", "timed out", "no value within 1 s"),
        ("backtrack", "timed out", "no value within 1 s"),
        ("die", "process died", "exit code 3"),
        ("crash", "process died", "exit code -11"),
    ],
)
def test_only_the_response_that_fails_is_unscored(response, reason, cause, capfd):
    with RewardModel({**misbehaving(timeout_s=1), "answer": ExactAnswer()}, workers=2) as model:
        rewards = model.score(samples("fine", response, "good", answer="good"))
    assert rewards.scored == [True, False, True]
    assert rewards.total == pytest.approx([1, math.nan, 2], nan_ok=True)
    assert rewards.terms == {"user": pytest.approx([1, math.nan, 1], nan_ok=True), "answer": [0, 0, 1]}
    assert rewards.failures == {"user": {reason: 1}}
    assert rewards.first_failure == {"user": cause}
    assert capfd.readouterr() == ("", "")


def test_failures_are_counted_by_reason_and_order_is_kept():
    bad = ["die", "raise", "sleep", "nan", "inf", "die", "backtrack"]
    with RewardModel({**misbehaving(timeout_s=1), "number": LastNumber()}, workers=2) as model:
        rewards = model.score(
            [Sample(prompt="", response=r, answer="1") for pair in zip(bad, "1234567", strict=True) for r in pair]
        )
    assert rewards.scored == [False, True] * 7
    assert rewards.terms["number"] == [0, 1] + [0, 0] * 6
    assert rewards.failures == {"user": {"process died": 2, "raised": 1, "timed out": 2, "NaN": 2}}
    assert rewards.first_failure == {"user": "exit code 3"}


def test_what_is_submitted_in_parts_is_scored_as_the_whole_is():
    bad = ["fine", "die", "raise", "sleep", "nan", "good", "inf", "crash"]
    with RewardModel({**misbehaving(timeout_s=1), "answer": ExactAnswer()}, workers=2) as model:
        whole = model.score(samples(*bad, answer="good"))
        given = samples(*bad, answer="good")
        later, first = model.submit(given[5:]), model.submit(given[:5])
        parts = model.collect([*first, *later])
    for name in ("scored", "failures", "first_failure"):
        assert getattr(parts, name) == getattr(whole, name), name
    assert parts.total == pytest.approx(whole.total, nan_ok=True)
    assert parts.terms == {name: pytest.approx(values, nan_ok=True) for name, values in whole.terms.items()}
    assert parts.scored == [True, False, False, False, False, True, False, False]


def test_what_is_submitted_is_scored_before_anyone_waits():
    with RewardModel({"user": Function(function="user_rewards:brevity")}, workers=1) as model:
        (pending,) = model.submit(samples("four"))
        (job,) = pending.jobs
        deadline = time.monotonic() + 30
        while not job.future.done() and time.monotonic() < deadline:
            time.sleep(0.01)
        assert job.future.done()
        assert model.collect([pending]).total == [-4.0]


def test_what_a_broken_pool_lost_is_scored_in_the_next():
    with RewardModel({"process": Function(function="user_rewards:process")}, workers=1) as model:
        first = int(model.score(samples("")).terms["process"][0])
        os.kill(first, signal.SIGKILL)
        time.sleep(0.5)
        begun = [model.submit(samples("")) for _ in range(2)]
        values = [model.collect(pending).total[0] for pending in begun]
    assert values[0] == values[1] != first


def test_threads_share_the_workers_while_one_of_them_breaks_the_pool():
    with RewardModel(misbehaving(), workers=2) as model:
        found = {}

        def score(name, *responses):
            found[name] = model.score(samples(*responses)).scored

        threads = [
            threading.Thread(target=score, args=("deaths", *["die"] * 6)),
            threading.Thread(target=score, args=("fine", *["fine"] * 6)),
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert found == {"deaths": [False] * 6, "fine": [True] * 6}


def test_scoring_works_from_a_thread_that_ends():
    with RewardModel(misbehaving(timeout_s=1), workers=1) as model:
        seen = []
        for _ in range(2):
            thread = threading.Thread(target=lambda: seen.append(model.score(samples("fine", "sleep")).scored))
            thread.start()
            thread.join()
        assert seen == [[True, False], [True, False]]


def test_libraries_load_outside_the_time_out():
    entry = {"question": "1 + 1 =", "answer": "2", "metadata": {}}
    terms = {"math": MathVerify(timeout_s=1), "gym": ReasoningGymScore(timeout_s=1)}
    with RewardModel(terms, workers=1) as model:
        rewards = model.score(samples("2", answer="2", columns={"dataset": "chain_sum", "entry": entry}))
    assert rewards.total == [2]


def test_a_worker_killed_from_outside_is_replaced():
    terms = {"process": Function(function="user_rewards:process")}
    with RewardModel(terms, workers=1) as model:
        first = int(model.score(samples("")).terms["process"][0])
        os.kill(first, signal.SIGKILL)
        time.sleep(0.5)
        second = int(model.score(samples("")).terms["process"][0])
        assert first != second
    assert not alive(second)


def test_many_responses_are_scored_by_every_term():
    terms = {"answer": ExactAnswer(), "number": LastNumber(), "user": Function(function="user_rewards:brevity")}
    with RewardModel(terms, workers=2) as model:
        rewards = model.score(samples(*map(str, range(512)), answer="7"))
    assert rewards.terms["answer"] == rewards.terms["number"] == [float(i == 7) for i in range(512)]


def test_nothing_to_score_and_nothing_to_score_with():
    with RewardModel({"answer": ExactAnswer()}, workers=1) as model:
        assert model.score([]).terms == {"answer": []}
    with pytest.raises(UserError, match="reward_model has no term"):
        RewardModel({}, workers=1)


PARENT = """
import sys
from tpg.rewards.base import Failure, LoadedTerm, Sample, Scorer
from tpg.rewards.function import Function
from tpg.rewards.model import RewardModel

def score(name, *responses):
    model = RewardModel({"user": Function(function="user_rewards:" + name)}, workers=2)
    return model.score([Sample(prompt="", response=response) for response in responses])

print(*map(int, score("process", *"aaaaaaaa").total), flush=True)  # and leaves without closing
if sys.argv[1] == "busy":
    score("misbehave", "backtrack", "sleep")
"""


@pytest.fixture
def parent(tmp_path):
    """Start a program, without a `__main__` guard, that scores in workers."""
    path = tmp_path / "parent.py"
    path.write_text(PARENT)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([HERE, *sys.path])}
    started = []

    def start(what):
        command = [sys.executable, str(path), what]
        process = subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def test_a_program_that_forgets_to_close_ends_quietly(parent):
    process = parent("idle")
    out, err = process.communicate(timeout=30)
    assert process.returncode == 0
    assert err == ""
    assert not any(alive(worker) for worker in out.split())


def workers_of(process):
    """The processes of its session, once there are those of both of its reward models."""
    deadline = time.monotonic() + 20
    workers = []
    while len(workers) < 4 and time.monotonic() < deadline:
        time.sleep(0.5)
        workers = [
            int(path.parent.name)
            for path in Path("/proc").glob("[0-9]*/stat")
            if _session(path) == str(process.pid) and path.parent.name != str(process.pid)
        ]
    assert len(workers) >= 4
    return workers


def _session(path):
    try:
        return path.read_text().rpartition(")")[2].split()[2]
    except OSError:  # it has ended meanwhile
        return None


def test_a_killed_program_leaves_no_worker_behind(parent):
    process = parent("busy")
    process.stdout.readline()
    workers = workers_of(process)
    process.kill()
    process.wait()
    deadline = time.monotonic() + 10
    while any(map(alive, workers)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(map(alive, workers))


def test_ctrl_c_is_left_to_the_parent(parent):
    process = parent("busy")
    process.stdout.readline()
    workers_of(process)
    time.sleep(0.5)  # while processes are started, none hears it
    os.killpg(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert err.count("Traceback") == 1


@pytest.mark.parametrize(
    ("terms", "columns", "message"),
    [
        (
            {"exact_answer": ExactAnswer()},
            {"entry", "dataset"},
            "reward_model.exact_answer needs the column 'answer', which the task does not offer; "
            "it offers: dataset, entry",
        ),
        (
            {"gym": ReasoningGymScore()},
            {"dataset"},
            "reward_model.gym needs the column 'entry', which the task does not offer; it offers: dataset",
        ),
        (
            {"n": LastNumber()},
            set(),
            "reward_model.n needs the column 'answer', which the task does not offer; it offers: none",
        ),
    ],
)
def test_a_column_that_the_task_does_not_offer(terms, columns, message):
    with pytest.raises(UserError) as caught:
        check_terms(terms, columns)
    assert str(caught.value) == message
    check_terms(terms, {"answer", "dataset", "entry"})


class Shouts(LoadedTerm):
    """Counts capital letters, here and not in a worker."""

    def load(self, key):
        return Shouting()


class Shouting(Scorer):
    def __init__(self):
        self.device, self.closed = "cpu", False

    def begin(self, sample):
        return sample.response

    def outcomes(self, begun):
        counted = [float(sum(letter.isupper() for letter in text)) for text in begun]
        return [
            Failure("raised", "SilentError: no letters") if text == "" else math.inf if text == "!" else value
            for text, value in zip(begun, counted, strict=True)
        ]

    def metrics(self):
        return {"on_cpu": Told(float(self.device == "cpu"), 1)}

    def to(self, device):
        self.device = device

    def close(self):
        self.closed = True


def test_what_was_loaded_before_another_was_not_to_be_had_is_freed(monkeypatch):
    class Missing(LoadedTerm):
        def load(self, key):
            raise UserError(f"{key}: not here")

    made = Shouting()
    monkeypatch.setattr(Shouts, "load", lambda self, key: made)
    with pytest.raises(UserError, match=r"^against\.gone: not here$"):
        load_scorers({"loud": Shouts(), "gone": Missing()}, "against")
    assert made.closed


def test_a_loaded_term_scores_here_beside_those_of_the_workers():
    terms = {"loud": Shouts(weight=2.0), "length": LengthTarget(target_tokens=2, tolerance_tokens=2)}
    scorers = load_scorers(terms)
    assert list(scorers) == ["loud"]
    with RewardModel(terms, workers=1, scorers=scorers) as model:
        model.to("meta")
        rewards = model.score([Sample(prompt="", response=text, token_ids=(1,)) for text in ("ABc", "", "!", "D")])
    assert rewards.terms["loud"] == pytest.approx([2.0, math.nan, math.nan, 1.0], nan_ok=True)
    assert rewards.total == pytest.approx([4.5, math.nan, math.nan, 2.5], nan_ok=True)
    assert rewards.scored == [True, False, False, True]
    assert rewards.failures == {"loud": {"raised": 1, "NaN": 1}}
    assert rewards.first_failure == {"loud": "SilentError: no letters"}
    assert rewards.metrics == {"loud/on_cpu": 0.0}
    assert scorers["loud"].closed
