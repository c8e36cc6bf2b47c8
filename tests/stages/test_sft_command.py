"""`tpg.sft` from the command line: what it leaves, how it goes on, what it refuses."""

import json
import math
import os
import shutil
import signal

import pytest
import torch
from PIL import Image
from stage_options import assert_same_run, checkpoint_of, rows_of, run_in, written

import tpg.sft
from tpg.policies.huggingface import HuggingFace
from tpg.stages.recording import StepLine
from tpg.stages.supervised import SupervisedModule, tokens_of
from tpg.tasks.demonstrations import TaskDemonstrations
from tpg.tasks.sort import Sort

POLICY = ["policy=tiny", "policy.hidden_size=32", "policy.layers=2", "policy.heads=2", "logger=[csv]", "trainer=cpu"]
RUN = [
    *POLICY, "task=sort", "task.digits=3", "task.train_size=64", "task.evaluation_size=32", "demonstrations.count=60",
    "optimizer.lr=3e-3", "responses_per_step=8", "epochs=2", "checkpoint.every=3", "checkpoint.keep_last=9",
    "run_dir=run",
]  # fmt: skip


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A complete run of 14 steps."""
    return run_in(tmp_path_factory.mktemp("finished"), tpg.sft, *RUN)


@pytest.fixture
def copied(finished, tmp_path):
    """A copy of the run in this test's folder, cut back to what stood after a step."""

    def made(step=None):
        run = tmp_path / "run"
        shutil.copytree(finished, run)
        if step is not None:
            (run / "summary.json").unlink()
            shutil.rmtree(run / "policy")
            for path in run.glob("checkpoints/*.ckpt"):
                if int(path.stem.split("-")[1]) > step:
                    path.unlink()
        return run

    return made


def test_a_run_leaves_a_policy_that_has_learned_and_that_others_load(finished):
    rows = rows_of(finished)
    assert [int(row["iteration"]) for row in rows] == list(range(15))
    assert [row["iteration"] for row in rows if row["eval/loss"]] == ["0", "7", "14"]
    summary = json.loads((finished / "summary.json").read_text())
    assert summary["iterations"] == 14
    assert summary["eval/loss"] == float(rows[-1]["eval/loss"]) < summary["eval/loss/first"] - 0.5
    assert summary["eval/perplexity"] == pytest.approx(math.exp(summary["eval/loss"]))
    assert 4.4 < summary["eval/loss/first"] < 4.7  # of 98 tokens that are about equally likely, log 98 is 4.58
    # Each response is three digits and the token that ends it; all are seen twice.
    assert summary["num_tokens"] == 2 * 4 * summary["responses"]
    assert [float(row["learning_rate"]) for row in rows[1:]] == pytest.approx([3e-3 * (1 - i / 14) for i in range(14)])
    with Image.open(finished / "learning_curve.png") as picture:
        assert picture.size == (960, 540)

    policy = HuggingFace(path=str(finished / "policy")).load(0)
    sort = Sort(digits=3, train_size=64, evaluation_size=32)
    pairs = TaskDemonstrations(count=60).load(sort, 0).held_out
    stage = type("Short", (), {"task": sort, "max_tokens": 64, "overlong": "raise"})
    tokens = tokens_of(pairs, policy, stage)
    record = tokens.record(range(len(pairs)), policy)
    with torch.no_grad():
        loss = -policy.statistics(record, 1.0).logprobs.sum() / record.action_mask_BT.sum()
    assert float(loss) == pytest.approx(summary["eval/loss"], rel=1e-5)


def test_the_same_command_says_that_it_is_done_and_another_is_refused(entry, copied):
    run = copied()
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    for arguments in (RUN, ["resume=run"]):
        code, out, err = entry(tpg.sft, *arguments)
        assert (code, err) == (0, [])
        assert "finished before, with eval/loss" in out
    code, _, err = entry(tpg.sft, *RUN, "epochs=3", "seed=1")
    assert code == 2
    assert err == [
        f"error: seed=1: {run} holds a run with seed=0; also other: epochs; give another run_dir, or that run's config"
    ]
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*")} == before


@pytest.mark.parametrize("step", [0, 6, 14], ids=["before-any", "between", "after-the-last"])
def test_resumed_it_gives_the_same_numbers(step, entry, copied, finished):
    run = copied(step)
    code, out, err = entry(tpg.sft, *RUN)
    assert (code, err) == (
        2,
        [f"error: run_dir={run} is not empty; choose another folder, or continue the run in it with resume={run}"],
    )
    code, out, err = entry(tpg.sft, "resume=run")
    assert (code, err) == (0, [])
    assert (f"continuing after step {step}" in out) == (step > 0)
    assert_same_run(run, finished, "policy")


def test_a_signal_leaves_the_step_it_came_in_and_the_run_goes_on(entry, tmp_path, monkeypatch, finished):
    def interrupting(self, module, iteration, shown=StepLine.on_iteration_end):
        shown(self, module, iteration)
        if iteration == 4:
            os.kill(os.getpid(), signal.SIGTERM)

    listening = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)}
    try:
        with monkeypatch.context() as patch:
            patch.setattr(StepLine, "on_iteration_end", interrupting)
            code, _, err = entry(tpg.sft, *RUN)
    finally:
        for number, handler in listening.items():
            signal.signal(number, handler)
    run = tmp_path / "run"
    assert (code, err) == (143, [f"interrupted; continue with: python -m tpg.sft resume={run}"])
    assert checkpoint_of(run)["epoch"] == 3  # the fourth
    assert sorted(path.stem for path in run.glob("checkpoints/*")) == ["iteration-000003", "iteration-000004"]
    assert not (run / "summary.json").exists()
    code, _, err = entry(tpg.sft, "resume=run")
    assert (code, err) == (0, [])
    assert_same_run(run, finished, "policy")


@pytest.mark.parametrize(("measurement", "left"), [(1, [0]), (2, [3, 6])], ids=["before-any-step", "after-an-epoch"])
def test_a_signal_while_it_measures_is_heard_in_time(measurement, left, entry, tmp_path, monkeypatch, finished):
    counted = []

    def interrupting(self, measured=SupervisedModule.measured):
        counted.append(self)
        if len(counted) == measurement:
            os.kill(os.getpid(), signal.SIGTERM)
        return measured(self)

    listening = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)}
    try:
        with monkeypatch.context() as patch:
            patch.setattr(SupervisedModule, "measured", interrupting)
            code, _, err = entry(tpg.sft, *RUN, "checkpoint.stop_within_s=0")
    finally:
        for number, handler in listening.items():
            signal.signal(number, handler)
    run = tmp_path / "run"
    assert (code, err) == (143, [f"interrupted; continue with: python -m tpg.sft resume={run}"])
    assert [int(path.stem.split("-")[1]) for path in sorted(run.glob("checkpoints/*"))] == left
    code, _, err = entry(tpg.sft, "resume=run")
    assert (code, err) == (0, [])
    assert_same_run(run, finished, "policy")


def test_memory_may_change_beside_resume_and_changes_no_result(entry, copied, finished):
    run = copied(3)
    code, _, err = entry(tpg.sft, "resume=run", "epochs=5")
    assert code == 2
    assert err[0].startswith(
        "error: epochs: resume continues with the run's own config; only the trainer's devices and"
    )
    code, _, err = entry(tpg.sft, "resume=run", "tokens_per_microbatch=20", "trainer=cpu")
    assert (code, err) == (0, [])
    assert "tokens_per_microbatch: 20" in (run / "config.yaml").read_text()
    for row, whole in zip(rows_of(run), rows_of(finished), strict=True):
        assert {name: float(value) for name, value in row.items() if value} == pytest.approx(
            {name: float(value) for name, value in whole.items() if value}, rel=1e-3
        )


def test_a_sweep_runs_its_jobs_and_goes_on(entry, tmp_path):
    jobs = ["-m", *RUN[:-1], "run_dir=sweep", "epochs=1", "seed=0,1"]
    code, out, err = entry(tpg.sft, *jobs)
    assert (code, err) == (0, [])
    losses = [json.loads((tmp_path / f"sweep/seed_{seed}/summary.json").read_text())["eval/loss"] for seed in (0, 1)]
    assert losses[0] != losses[1]
    shutil.rmtree(tmp_path / "sweep/seed_1")
    code, out, err = entry(tpg.sft, *jobs)
    assert (code, err) == (0, [])
    assert "seed_0: finished before" in out
    assert json.loads((tmp_path / "sweep/seed_1/summary.json").read_text())["eval/loss"] == losses[1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["task=addition"], "demonstrations: Addition offers none; use demonstrations=dataset"),
        (["demonstrations=dataset"], "demonstrations.path: has no value and needs one; set demonstrations.path=..."),
        (["demonstrations=dataset", "demonstrations.path=no.jsonl"], "demonstrations.path=no.jsonl: no such file"),
        (["epoch=3"], "epoch: no such key; "),
        (["epochs=0"], "epochs=0: should be greater than or equal to 1"),
        (["demonstrations.count=1"], "demonstrations.count=1: should be greater than or equal to 2"),
        (["max_tokens=12"], "max_tokens=12: "),
        (["overlong=cut"], "overlong=cut: should be 'raise' or 'filter'"),
        (["trainer.devices=2"], "trainer.devices=2: one is what trainer=auto|cpu|gpu uses; add trainer=ddp"),
        (["trainer=ddp", "trainer.num_nodes=2"], "trainer.num_nodes=2: a stage before RL runs on one node; use"),
        (["+task.chat_template_kwargs.a=1"], "task.chat_template_kwargs needs a chat template"),
        (["resume=nowhere"], "resume="),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_mistake_ends_in_one_line_and_leaves_nothing(arguments, message, entry, tmp_path):
    code, out, err = entry(tpg.sft, *POLICY, "run_dir=run", *arguments)
    assert (code, out, len(err)) == (2, "", 1)
    assert err[0].startswith(f"error: {message}")
    assert list(tmp_path.iterdir()) == []


def test_a_run_of_another_entry_is_not_continued(entry, copied):
    import tpg.reward

    run = copied()
    code, _, err = entry(tpg.reward, "resume=run")
    assert (code, err) == (
        2,
        [f"error: resume={run}: the run in it is none of tpg.reward: its config has no preferences"],
    )


def test_a_dataset_of_ones_own_and_a_loss_that_is_not_finite(entry, tmp_path):
    rows = [{"question": f"{i}+1?", "solution": str(i + 1)} for i in range(20)]
    written(tmp_path / "rows.jsonl", rows)
    data = ["demonstrations=dataset", "demonstrations.path=rows.jsonl", "demonstrations.prompt=question"]
    arguments = [*POLICY, *data, "demonstrations.response=solution", "task=addition", "run_dir=run"]
    code, out, err = entry(tpg.sft, *arguments)
    assert (code, err) == (0, [])
    assert "note: 2 responses held out, of prompts that are not trained on" in out
    code, _, err = entry(tpg.sft, *arguments[:-1], "run_dir=far", "optimizer.lr=1e30", "epochs=9")
    assert code == 2
    assert err[0].startswith("error: step ")
    assert err[0].endswith("use a lower optimizer.lr, or trainer.precision=32-true")
