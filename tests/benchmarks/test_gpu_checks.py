"""The GPU's checks with the CPU as the device: that they pass here, fail where they should, and end in time."""

import json
import time

import pytest
import torch

from benchmarks import gpu_checks
from benchmarks.checks import engines, gradients, runs
from benchmarks.checks.engines import compared, float32_checks, probability_gap
from benchmarks.checks.gradients import Gradient
from benchmarks.checks.options import USUAL, CheckOptions
from benchmarks.checks.outcome import Found, Part
from benchmarks.checks.runs import distance, on_two_devices, resumed, strategies
from benchmarks.checks.subject import GREEDY, SAMPLED, Subject
from benchmarks.device.measure import Clock, OutOfTime
from benchmarks.gpu_checks import main
from tpg.jobs.configs import CONF

SMALL = {"model": "tiny", "prompts": 2, "responses_per_prompt": 2, "prompt_tokens": 6, "response_tokens": 8}
LINE = ["device=cpu", *(f"{key}={value}" for key, value in SMALL.items())]


@pytest.fixture(scope="module")
def subject():
    return Subject(CheckOptions(**SMALL), "cpu")


def result(folder):
    return json.loads((folder / "gpu_checks.json").read_text())


def later():
    return Clock(time.monotonic() + 600)


def test_the_command_on_the_cpu(tmp_path, capsys):
    some = ["parts=[engines,objectives,strategies]", "engines=[native]", "objectives=[p3o]"]
    assert main([*LINE, *some, f"run_dir={tmp_path}"]) == 0
    told = result(tmp_path)
    assert [(check["check"], check["status"]) for check in told["checks"]] == [
        ("native, float32, greedy tokens", "passed"),
        ("native, float32, sampled tokens", "passed"),
        ("native, float32, continuations", "passed"),
        ("native, bf16, log-probabilities", "passed"),
        ("p3o, float32, gradient", "passed"),
        ("p3o, bf16, gradient", "passed"),
        ("ddp, fsdp", "skipped"),
    ]
    assert not told["complete"]
    assert (told["model"], told["machine"]["gpu"], told["checks"][0]["peak_memory_bytes"]) == ("tiny", None, None)
    assert told["versions"]["torch"] == torch.__version__
    assert told["checks"][0]["figures"]["equal_share"] == 1.0
    assert set(told["checks"][4]["figures"]["layouts"]) == {"shared", "padded"}
    assert "6 passed, 0 failed, 1 skipped" in capsys.readouterr().out
    assert main([*LINE, f"run_dir={tmp_path}"]) == 2
    assert "holds a gpu_checks.json already" in capsys.readouterr().err


def test_a_run_that_is_continued(tmp_path, monkeypatch):
    monkeypatch.setattr("tpg.training.summary.draw_learning_curve", lambda *_: None)
    subject = Subject(CheckOptions(**SMALL, iterations=2), "cpu")
    (found,) = resumed(subject, tmp_path / "runs.log", later())
    assert not found.problems
    assert found.bounds["same_metrics"] == ("==", True)
    assert (found.figures["resumed_gap"], found.figures["step"] > 0) == (0.0, True)
    assert "iteration 2/2" in (tmp_path / "runs.log").read_text()


@pytest.mark.parametrize(("repeated", "passes"), [(0.0, False), (0.02, True)], ids=["exact device", "inexact device"])
def test_a_continued_run_may_differ_where_equal_runs_do(tmp_path, monkeypatch, repeated, passes):
    """The whole run steps by 1 from 1 to 2; the other one's boundary is off by `repeated`, its end by 0.05."""
    ends = iter([{1: 1.0, 2: 2.0}, {1: 1.0 + repeated}, {2: 2.05}])

    def run(subject, folder, log, clock, shots, *_, **__):
        folder.mkdir(exist_ok=True)
        (folder / "completions.jsonl").write_text("{}")
        shots.weights = {i: {"a": torch.tensor([value])} for i, value in next(ends).items()}

    monkeypatch.setattr(runs, "_run", run)
    (found,) = resumed(Subject(CheckOptions(iterations=2), "cpu"), tmp_path, later())
    assert found.figures["resumed_gap"] == pytest.approx(0.05, rel=1e-5)
    assert (not found.problems) == passes


@pytest.mark.long
def test_the_demo_and_two_devices(tmp_path):
    subject = Subject(CheckOptions(**SMALL, iterations=2), "cpu")
    found = [*runs.demo(subject, tmp_path / "log", later()), *on_two_devices(subject, tmp_path / "log", later())]
    assert [each.name for each in found] == ["demo, tiny policy", "ddp on two devices", "fsdp on two devices"]
    assert [each.problems for each in found] == [[], [], []]


def test_every_objective_has_its_usual_method():
    assert set(USUAL) == {path.stem for path in (CONF / "objective").glob("*.yaml")}


def test_bounds_by_hand():
    figures = {"low": 1.0, "high": 2.0, "nothing": None, "nan": float("nan")}
    bounds = {"low": (">=", 1.0), "high": ("<=", 1.5), "nothing": ("<=", 1.0), "nan": ("<=", 1.0), "gone": ("==", True)}
    assert Found("a check", figures, bounds).problems == [
        "high is 2, should be <= 1.5",
        "nothing is missing, should be <= 1",
        "nan is nan, should be <= 1",
        "gone is missing, should be == yes",
    ]


def test_gradients_by_hand():
    one = Gradient(1.0, {"a": torch.tensor([3.0, 0.0]), "b": torch.tensor([[4.0]])})
    other = Gradient(1.5, {"a": torch.tensor([0.0, 6.0]), "b": torch.tensor([[8.0]])})
    found = gradients.compared(one, other, 2.0)
    assert found == {"cosine": pytest.approx(32 / 50), "norm_gap": pytest.approx(0.5), "loss_gap": 0.25}
    nothing = Gradient(0.0, {"a": torch.zeros(2), "b": torch.zeros(1, 1)})
    assert gradients.compared(one, nothing, 2.0)["norm_gap"] == float("inf")
    with pytest.raises(ValueError, match="gradients of other weights: \\['b'\\]"):
        gradients.compared(one, Gradient(1.0, {"a": torch.zeros(2)}), 2.0)


def test_another_gradient_fails(subject, monkeypatch):
    taken = gradients._gradient

    def wrong(policy, method, trajectories, size, layout, autocast=None):
        found = taken(policy, method, trajectories, size, layout, autocast)
        if layout == "shared":
            found.by_name["model.model.norm.weight"] += 0.1 * found.by_name["model.model.norm.weight"].norm()
        return found

    monkeypatch.setattr(gradients, "_gradient", wrong)
    found = next(gradients.checks(subject, later()))
    assert any(problem.startswith("cosine is") for problem in found.problems)


def test_what_a_token_hangs_on(subject, monkeypatch):
    class Half:
        def __init__(self, **_):
            pass

        def model(self, ids):
            return type("", (), {"logits": torch.tensor([0.5, 0.3, 0.2]).log().expand(1, ids.shape[1], 3)})

    monkeypatch.setitem(subject.__dict__, "reference", Half())
    assert probability_gap(subject, [0], (1, 0), GREEDY, 0.0) == pytest.approx(0.2)
    # Token 1 lies between 0.5 and 0.8.
    assert probability_gap(subject, [0], (1, 0), SAMPLED, 0.4) == pytest.approx(0.1)
    assert probability_gap(subject, [0], (1, 2), SAMPLED, 0.95) == pytest.approx(0.15)
    assert probability_gap(subject, [0], (1, 2), SAMPLED, 0.7) == 0.0


def test_other_tokens_fail(subject, monkeypatch):
    expected = subject.expected(SAMPLED)
    ids_BT = expected.response_ids_BT.clone()
    ids_BT[1, 1] = (ids_BT[1, 1] + 1) % 90 + 3
    lengths = expected.lengths_B.tolist()
    monkeypatch.setattr(engines, "probability_gap", lambda subject, context, tokens, *rest: 0.25)
    found = compared(subject, subject.prefixes, expected.replace(response_ids_BT=ids_BT), expected, SAMPLED)
    assert found["differing_responses"] == 1
    assert found["equal_share"] == (sum(lengths) - lengths[1] + 1) / sum(lengths)
    assert found["largest_probability_gap"] == 0.25
    assert Found("tokens", found, engines.FLOAT32).problems


def test_an_engine_that_is_not_installed_is_skipped(subject, monkeypatch):
    monkeypatch.setattr(engines.importlib.util, "find_spec", lambda name: None)
    assert [found.skipped for found in float32_checks(subject, "vllm", later())] == ["vllm is not installed"]


def test_generation_ends_in_time(subject):
    with pytest.raises(OutOfTime):
        list(float32_checks(subject, "native", Clock(0.0)))


def test_strategies_need_two_gpus(subject, tmp_path):
    assert [found.skipped for found in strategies(subject, tmp_path / "log", later())] == [
        "needs two GPUs, and there are 0"
    ]


def test_distances():
    one = {"a": torch.zeros(2), "b": torch.ones(1)}
    assert distance(one, {"a": torch.tensor([3.0, 0.0]), "b": torch.tensor([5.0])}) == 5.0


def tried(tmp_path, monkeypatch, parts, *arguments):
    monkeypatch.setattr(gpu_checks, "parts", lambda subject, log: parts)
    code = main([*LINE, *arguments, f"run_dir={tmp_path}"])
    return code, [(check["check"], check["status"], check["reason"]) for check in result(tmp_path)["checks"]]


def test_a_check_that_raises_has_failed_and_the_next_part_is_tried(tmp_path, monkeypatch):
    def broken(clock):
        yield Found("first", {"x": 1.0}, {"x": ("<=", 2.0)})
        raise ValueError("something\nelse")

    parts = [Part("broken", 60, broken), Part("next", 60, lambda clock: iter([Found("second", {"x": 3.0})]))]
    assert tried(tmp_path, monkeypatch, parts) == (
        1,
        [("first", "passed", ""), ("broken", "failed", "ValueError: something else"), ("second", "passed", "")],
    )


def test_the_time_of_a_part_and_of_all(tmp_path, monkeypatch):
    def slow(clock):
        yield Found("first")
        raise OutOfTime

    parts = [Part("slow", 5, slow), Part("long", 600, slow)]
    assert tried(tmp_path / "one", monkeypatch, parts, "minutes=2") == (
        0,
        [
            ("first", "passed", ""),
            ("slow, what is left", "skipped", "the part's 5 seconds are used up"),
            ("first", "passed", ""),
            ("long, what is left", "skipped", "the 2 minutes are used up"),
        ],
    )
    code, checks = tried(tmp_path / "two", monkeypatch, parts[:1], "minutes=0.01")
    assert (code, checks) == (1, [("slow", "skipped", "the 0.01 minutes are used up")])


@pytest.mark.parametrize(
    ("argument", "told"),
    [
        ("engines=[nativ]", "nativ: there are native, transformers, vllm; did you mean native?"),
        ("objectives=[ppo]", "ppo: there are policy_gradient, ppo_clip,"),
        ("parts=[run]", "run: there are engines, objectives, runs, strategies; did you mean runs?"),
    ],
    ids=["engine", "objective", "part"],
)
def test_a_misspelled_name_is_told_in_a_line(tmp_path, capsys, argument, told):
    assert main([argument, f"run_dir={tmp_path / 'new'}"]) == 2
    error = capsys.readouterr().err
    assert told in error
    assert error.count("\n") == 1
    assert not (tmp_path / "new").exists()
