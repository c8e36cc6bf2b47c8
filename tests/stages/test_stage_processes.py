"""Stages of two processes: the numbers of one, whatever is divided how, and the same rules of stopping and going on."""

import json
import os
import signal
from pathlib import Path

import pytest
import torch
from builders import in_double_precision, tiny_policy
from process_trees import ranks_of
from safetensors.torch import load_file
from stage_options import SMALL, assert_same_run, checkpoint_of, preference_stage, rows_of, supervised_stage
from test_stage_kills import after, done, started

import tpg.sft
from tpg.stages import preference, supervised
from tpg.stages.classifier import RewardClassifier
from tpg.stages.preference import PreferenceModule
from tpg.stages.supervised import SupervisedModule
from tpg.tasks.demonstrations import Demonstration
from tpg.tasks.preferences import Pair
from tpg.training.parallel.ranks import Ranks

RESPONSES = ["x", "yes", "a rather long response", "12345", "67", "another one", "8"]


def supervised_module(tokens=None):
    policy = in_double_precision(tiny_policy(**SMALL))
    stage = supervised_stage(tokens_per_microbatch=tokens)
    data = supervised.tokens_of([Demonstration(f"p{i}:", text) for i, text in enumerate(RESPONSES)], policy, stage)
    return SupervisedModule(policy, data, data, stage)


def preference_module(tokens=None):
    policy = in_double_precision(tiny_policy(**SMALL))
    stage = preference_stage(tokens_per_microbatch=tokens, centering=0.1)
    pairs = [Pair(f"p{i}:", text, "no") for i, text in enumerate(RESPONSES)]
    data = preference.tokens_of(pairs, policy.tokenizer, policy.max_positions, stage)
    return PreferenceModule(RewardClassifier(policy, seed=3), data, data, stage)


def step_of(made, rows, tokens, world):
    """The loss and the gradients of a step, summed over the processes that divide it, and the passes of each."""
    total, gradients, passes = 0.0, [], []
    for rank in range(world):
        module = made(tokens)
        module.ranks = Ranks(rank, world)
        passes.append(module.passes(rows))
        for part in filter(None, passes[-1]):
            loss, _ = module.share(part, rows)
            loss.backward()
            total += loss.item()
        zero = torch.zeros(())
        gradients.append([zero if each.grad is None else each.grad for each in module.trained.parameters()])
    return total, [sum(each) for each in zip(*gradients, strict=True)], passes


@pytest.mark.parametrize("rows", [[4, 0, 2, 1, 3, 6, 5], [2]], ids=["uneven", "fewer-than-processes"])
@pytest.mark.parametrize("made", [supervised_module, preference_module], ids=["sft", "reward"])
def test_the_shares_of_processes_are_the_whole_step_in_as_many_passes_each(made, rows):
    loss, gradients, _ = step_of(made, rows, None, 1)
    for tokens, world in ((None, 2), (40, 2), (40, 3)):
        shared, summed, passes = step_of(made, rows, tokens, world)
        assert len({len(own) for own in passes}) == 1
        assert sorted(row for own in passes for part in own for row in part) == sorted(rows)
        assert shared == pytest.approx(loss, abs=1e-9)
        for found, whole in zip(summed, gradients, strict=True):
            torch.testing.assert_close(found, whole, atol=1e-9, rtol=1e-9, check_dtype=False)


def test_one_process_may_be_all_of_them(entry, tmp_path):
    for devices in (["trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=1"], ["trainer=cpu"]):
        code, _, err = entry(tpg.sft, *arguments_of("tpg.sft"), *devices, "epochs=1", f"run_dir={devices[0][8:]}")
        assert (code, err) == (0, [])
    assert_same_run(tmp_path / "ddp", tmp_path / "cpu", "policy")


def test_processes_that_were_started_together_are_refused(entry, tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    code, out, err = entry(tpg.sft, *arguments_of("tpg.sft"), *TWO, "run_dir=run")
    assert (code, out, len(err)) == (2, "", 1)
    assert err[0].endswith("start one alone, with trainer=ddp trainer.devices=2")
    assert list(tmp_path.iterdir()) == []


# Processes

POLICY = ["policy=tiny", "policy.hidden_size=32", "policy.layers=2", "policy.heads=2", "logger=[csv]"]
TRAINING = [
    "trainer.precision=32-true",
    "optimizer.lr=3e-3",
    "epochs=2",
    "checkpoint.every=3",
    "checkpoint.keep_last=9",
]
ONE = ["trainer=cpu"]
TWO = ["trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2"]
# 54 rows in steps of 11 or 53, the last of 10 or 1: always uneven, and once one process has none.
STAGES = {
    "tpg.sft": (["task=sort", "demonstrations.count=60", "responses_per_step=11"], "policy"),
    "tpg.reward": (
        ["task=hidden_reward", "preferences.count=60", "pairs_per_step=11", "centering=0.01"],
        "reward_model",
    ),
}
SMALL_PASSES = "tokens_per_microbatch=100"


def arguments_of(entry):
    return [*POLICY, *TRAINING, *STAGES[entry][0], SMALL_PASSES]


def numbers(run):
    return [{name: float(value) for name, value in row.items() if value} for row in rows_of(run)]


def files(run):
    return {str(path.relative_to(run)) for path in run.rglob("*") if path.suffix != ".diff"}


@pytest.mark.long
@pytest.mark.parametrize("entry", STAGES)
def test_two_processes_give_what_one_gives(entry, tmp_path):
    model = STAGES[entry][1]
    for name, devices in (("one", ONE), ("two", TWO)):
        assert done(started(entry, tmp_path, *arguments_of(entry), *devices, f"run_dir={name}")) == (0, "")
    one, two = tmp_path / "one", tmp_path / "two"
    assert files(one) == files(two)
    for row, whole in zip(numbers(two), numbers(one), strict=True):
        assert row == pytest.approx(whole, rel=1e-4, abs=1e-5)
    expected = load_file(one / model / "model.safetensors")
    for name, weight in load_file(two / model / "model.safetensors").items():
        torch.testing.assert_close(weight, expected[name], atol=1e-5, rtol=0)
    summaries = [json.loads((run / "summary.json").read_text()) for run in (one, two)]
    for name in ("num_tokens", "iterations", *(["eval/accuracy"] if entry == "tpg.reward" else ["eval/loss"])):
        assert summaries[1][name] == pytest.approx(summaries[0][name], abs=1e-5)
    if entry == "tpg.reward":
        lines = [[json.loads(line) for line in (run / "held_out.jsonl").open()] for run in (one, two)]
        rewards = [[(line["chosen_reward"], line["rejected_reward"]) for line in each] for each in lines]
        torch.testing.assert_close(*map(torch.tensor, rewards), atol=1e-5, rtol=1e-5)


@pytest.mark.long
@pytest.mark.parametrize("entry", STAGES)
def test_a_stage_of_two_processes_that_is_stopped_and_killed_ends_as_one_that_was_let_alone(entry, tmp_path):
    arguments, run = [*arguments_of(entry), *TWO, "epochs=20"], tmp_path / "run"
    assert done(started(entry, tmp_path, *arguments, "run_dir=whole")) == (0, "")
    process = started(entry, tmp_path, *arguments, "run_dir=run")
    after(run, 3, process)
    process.send_signal(signal.SIGTERM)
    assert done(process) == (143, f"interrupted; continue with: python -m {entry} resume={run}\n")
    assert int(checkpoint_of(run)["epoch"]) + 1 == len(rows_of(run)) - 1  # the step in hand was made
    process = started(entry, tmp_path, "resume=run")
    after(run, len(rows_of(run)) + 5, process)
    ranks = ranks_of(process.pid, "tpg.jobs.stages")
    os.kill(ranks[1], signal.SIGKILL)
    code, err = done(process)
    assert code == 1
    assert err.startswith("error: rank 1 of 2 was killed by SIGKILL")
    assert not any(Path(f"/proc/{rank}").exists() for rank in ranks.values())
    assert done(started(entry, tmp_path, "resume=run")) == (0, "")
    assert_same_run(run, tmp_path / "whole", STAGES[entry][1])


@pytest.mark.long
def test_a_mistake_in_the_ranks_is_one_line_and_leaves_no_folder(tmp_path):
    code, err = done(started("tpg.sft", tmp_path, *arguments_of("tpg.sft"), *TWO, "max_tokens=8", "run_dir=run"))
    assert code == 2
    assert err.startswith("error: max_tokens=8: ")
    assert err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []
