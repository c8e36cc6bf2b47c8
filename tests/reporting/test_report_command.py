"""`python -m tpg.report` and `python -m tpg.compare`: real runs, and what is refused in one line."""

import json
import os
import signal
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
import wandb
from made_runs import config, grpo, make_run, rows

import tpg.compare
import tpg.report
import tpg.train

TINY = [
    *["policy=tiny", "policy.hidden_size=32", "policy.layers=2", "task=sort", "logger=[csv]", "trainer=cpu"],
    *["reward_model=[sorted_digits]", "reward_workers=1", "rollout.prompts=2", "rollout.responses_per_prompt=4"],
    *["rollout.max_response_tokens=8", "rollout.max_prompt_tokens=32", "optimizer.lr=1e-3"],
    *["evaluation.every=1", "evaluation.prompts=4", "iterations=2"],
]


@pytest.fixture
def call(entry):
    """An entry in this process, which may train and leaves signals and threads as they were."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield entry
    torch.set_num_threads(threads)
    for number, handler in handlers.items():
        signal.signal(number, handler)


def test_two_real_runs_are_reported_and_compared(call, tmp_path):
    for algorithm in ("rloo", "grpo"):
        code, _, err = call(tpg.train, *TINY, f"algorithm={algorithm}", f"run_dir=sweep/{algorithm}")
        assert (code, err) == (0, [])

    code, out, err = call(tpg.report, "runs=sweep")
    assert (code, err) == (0, [])
    assert out.startswith("2 runs of 2 methods, all finished. ")
    assert out.splitlines()[-5:] == [
        f"sweep/report/{name}" for name in ("report.html", "report.md", "report.json", "curves.png", "final.png")
    ]
    numbers = json.loads((tmp_path / "sweep/report/report.json").read_text())
    assert list(numbers["settings"]) == ["algorithm"]
    assert sorted(each["name"] for each in numbers["methods"]) == ["grpo", "rloo"]
    for each in numbers["methods"]:
        summary = json.loads((tmp_path / "sweep" / each["name"] / "summary.json").read_text())
        assert each["performance"]["scores"] == [summary["eval/reward"]]
        assert each["cost"]["tokens"] == summary["num_tokens"]
        assert each["cost"]["seconds"] == pytest.approx(summary["seconds"])
        assert len(each["curves"]["held-out reward by generated tokens"]["x"]) == 3
        assert each["completions"]["best"]
        assert each["completions"]["unreadable"] == 0

    code, out, err = call(tpg.compare, "sweep/rloo", "sweep/grpo")
    assert (code, err) == (0, [])
    assert "│ algorithm " in out
    assert "│ estimator._target_ " in out
    assert "held-out reward at equal tokens" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("", "runs: has no value and needs one; set runs=..."),
        ("runs=nope", "runs=nope: no such folder"),
        ("runs=swep", "runs=swep: no such folder; did you mean sweep?"),
        ("runs=no*", "runs=no*: matches no folder"),
        ("runs=[]", "runs: names no folder"),
        ("runs=empty", "runs=empty: no run in it or below: no config.yaml of tpg.train"),
        ("runs=new", "runs=new: none of the 1 runs has measured a reward in any iteration yet"),
        ("run=sweep", "run: no such key; a config has across, ..., runs, ...; did you mean runs?"),
        ("runs=sweep resamples=1", "resamples=1: should be greater than or equal to 100"),
        ("runs=sweep completions=many", "completions=many: should be a valid integer, ..."),
        ("runs=sweep across=[seed]", "across=seed: does not vary between these runs; what does: algorithm"),
        ("runs=sweep report_dir=file", "report_dir=file: cannot be written: File exists"),
        ("runs=wandb:team", "runs=wandb:team: should be wandb:entity/project or wandb:entity/project/group"),
    ],
)
def test_a_mistake_is_told_in_one_line(call, tmp_path, arguments, message):
    make_run(tmp_path / "sweep" / "a", config(), rows([0.1] * 4))
    make_run(tmp_path / "sweep" / "b", grpo(), rows([0.1] * 4))
    make_run(tmp_path / "new", config(), [], finished=False)
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    code, out, err = call(tpg.report, *arguments.split())
    assert (code, out, len(err)) == (2, "", 1), err
    parts = ("error: " + message).split("...")
    assert err[0].startswith(parts[0])
    assert err[0].endswith(parts[-1])
    assert not list(tmp_path.rglob("report.*"))


def test_what_is_passed_over_is_noted(call, tmp_path):
    make_run(tmp_path / "sweep" / "a", config(), rows([0.1] * 4))
    make_run(tmp_path / "sweep" / "b", config(1), [], finished=False)
    (tmp_path / "sweep" / "c").mkdir()
    (tmp_path / "sweep" / "c" / "config.yaml").write_text("model: x")
    code, out, err = call(tpg.report, "runs=sweep", "report_dir=there")
    assert (code, err) == (
        0,
        ["note: c is no run of tpg.train", "note: b (unfinished, 0 of 4 iterations) is left out"],
    )
    assert "there/report.html" in out


def test_a_list_is_reported_beside_what_it_names(call, tmp_path):
    make_run(tmp_path / "outputs" / "x" / "a", config(), rows([0.1] * 4))
    make_run(tmp_path / "outputs" / "y" / "b", grpo(), rows([0.1] * 4))
    code, out, _ = call(tpg.report, "runs=[outputs/x,outputs/y/b]")
    assert code == 0
    assert "outputs/report/report.html" in out


def test_runs_of_weights_and_biases_are_reported_like_others(call, tmp_path, monkeypatch):
    def fetched(name, made, rewards):
        return SimpleNamespace(
            name=name,
            url=f"https://somewhere/{name}",
            config=made,
            state="finished",
            summary={"final/eval/reward": 0.5, "note": "text"},
            scan_history=lambda: [{"_step": 0, "note": "x"}, *rows([0.0], tokens=9), *rows(rewards)],
        )

    class Api:
        def runs(self, path, filters):
            assert (path, filters) == ("team/tpg", {"group": "lr"})
            other = SimpleNamespace(name="other", config={"model": "x"})
            return [fetched("a", config(), [0.1, 0.4]), fetched("b", grpo(), [0.2, 0.6]), other]

    monkeypatch.setattr(wandb, "Api", Api)
    code, out, err = call(tpg.report, "runs=wandb:team/tpg/lr")
    assert code == 0
    assert out.startswith("2 runs of 2 methods, all finished. ")
    assert err == ["note: other is no run of tpg.train", "note: completions are not fetched from wandb:team/tpg/lr"]
    numbers = json.loads((tmp_path / "outputs/report/report.json").read_text())
    assert [each["performance"]["scores"] for each in numbers["methods"]] == [[0.5], [0.5]]
    # The first iteration was logged twice; the later row stands.
    assert {each["name"]: each["curves"]["training reward by iteration"]["mean"] for each in numbers["methods"]} == {
        "rloo": [0.1, 0.4],
        "grpo": [0.2, 0.6],
    }


def test_weights_and_biases_without_a_login_is_told_in_one_line(tmp_path):
    kept = {key: value for key, value in os.environ.items() if not key.startswith("WANDB_")}
    environment = {**kept, "HOME": str(tmp_path), "WANDB_MODE": "offline", "NETRC": str(tmp_path / "netrc")}
    done = subprocess.run(
        [sys.executable, "-m", "tpg.report", "runs=wandb:team/tpg"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: runs=wandb:team/tpg: Weights & Biases cannot be read: ")
    assert "wandb login" in line


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("", "expected the folders of two runs, got 0; e.g. python -m tpg.compare a b"),
        ("sweep/run_a", "expected the folders of two runs, got 1; e.g. python -m tpg.compare a b"),
        ("sweep/run_a sweep/run_c", "sweep/run_c: no such folder; did you mean run_b or run_a?"),
        ("sweep sweep/run_b", "sweep: holds no run: there is no config.yaml in it; name one of those below it"),
    ],
)
def test_compare_refuses_what_are_not_two_runs(call, tmp_path, arguments, message):
    for name in ("run_a", "run_b"):
        make_run(tmp_path / "sweep" / name, config(), rows([0.1] * 4))
    code, out, err = call(tpg.compare, *arguments.split())
    assert (code, out) == (2, "")
    assert err == [f"error: {message}"]


def test_compare_has_help(call):
    code, out, _ = call(tpg.compare, "--help")
    assert code == 0
    assert "python -m tpg.compare" in out
