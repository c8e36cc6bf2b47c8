"""Runs whose reward is a classifier: what a checkpoint holds, and what a run continues from."""

import csv
import json

import pytest
import torch
from docs_commands import call
from small_models import CHAT, saved, small_model, tokenizer

from tpg.rewards.model import FILES

RUNNING = "reward_model.classifier.normalization={_target_: tpg.rewards.learned.normalization.Running}"
SMALL = [
    "policy=tiny", "policy.hidden_size=16", "policy.layers=1", "task=sort", "task.train_size=16",
    "task.evaluation_size=4", "logger=[csv]", "trainer=cpu", "reward_workers=1", "rollout.prompts=2",
    "rollout.responses_per_prompt=4", "rollout.max_response_tokens=8", "rollout.max_prompt_tokens=32",
    "optimizer.lr=1e-2", "optimizer.schedule=constant", "evaluation.every=1", "evaluation.prompts=4",
    "checkpoint.every=1", "checkpoint.keep_last=9", "reward_model=[classifier]", RUNNING,
    "reward_model.classifier.clip=1.5",
]  # fmt: skip


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Three iterations, and the same after a stop behind the second."""
    root = tmp_path_factory.mktemp("runs")
    model = saved(root / "reward", small_model(), tokenizer(CHAT))
    with pytest.MonkeyPatch.context() as patch:
        given = [*SMALL, f"reward_model.classifier.path={model}"]
        call("tpg.train", [*given, "iterations=3", f"run_dir={root / 'whole'}"], patch)
        call("tpg.train", [*given, "iterations=2", f"run_dir={root / 'parts'}"], patch)
        call("tpg.train", [f"resume={root / 'parts'}", "iterations=3"], patch)
    return root / "whole", root / "parts"


def rows(folder):
    with (folder / "metrics.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    return [
        {name: value for name, value in row.items() if not name.startswith(("timing_s/", "step_time", "perf/"))}
        for row in table
    ]


def checkpoint(folder, iteration):
    return torch.load(folder / "checkpoints" / f"iteration-{iteration:06d}.ckpt", weights_only=True)


def test_resumed_equals_whole(runs):
    whole, parts = runs
    assert len(rows(whole)) == 3
    assert rows(whole) == rows(parts)
    weights = "policy/model.safetensors"
    assert (whole / weights).read_bytes() == (parts / weights).read_bytes()
    last, other = (json.loads((folder / "summary.json").read_text()) for folder in runs)
    assert last["eval/reward"] == other["eval/reward"]


def test_every_iteration_is_normalised_by_those_before_it(runs):
    table = rows(runs[0])
    key = "rewards/classifier"
    assert float(table[0][f"{key}/mean"]) == pytest.approx(float(table[0][f"{key}/raw_mean"]), abs=0.3)
    states = [checkpoint(runs[0], iteration)["tpg"]["rewards"]["classifier"] for iteration in (1, 2, 3)]
    assert [state["count"] for state in states] == [8, 16, 24]
    for before, after, row in zip(states, states[1:], table[1:], strict=False):
        raw = float(row[f"{key}/raw_mean"])
        assert after["mean"] == pytest.approx((before["count"] * before["mean"] + 8 * raw) / after["count"], abs=1e-5)
        if float(row[f"{key}/clipped"]) == 0:
            assert float(row[f"{key}/mean"]) == pytest.approx((raw - before["mean"]) / before["std"], abs=1e-4)
    assert all(0 <= float(row[f"{key}/clipped"]) < 1 for row in table)


def test_a_checkpoint_holds_nothing_of_the_reward_model(runs):
    found = checkpoint(runs[0], 3)
    assert set(found["tpg"]["rewards"]) == {"classifier", FILES}
    assert list(found["tpg"]["rewards"][FILES]) == ["classifier.path"]
    assert set(found["tpg"]["rewards"]["classifier"]) == {"count", "mean", "squares", "std"}
    names = list(found["state_dict"])
    assert names
    assert all(name.startswith("policy.") for name in names)
    assert not any("score" in name for name in names)
    hidden = {tensor.shape[-1] for name, tensor in found["state_dict"].items() if name.endswith("norm.weight")}
    assert hidden == {16}
    layers = {name.split(".")[4] for name in names if ".layers." in name}
    assert layers == {"0"}  # the reward model has two
    trained = sum(tensor.numel() for tensor in found["state_dict"].values())
    held = sum(
        value.numel()
        for state in found["optimizer_states"][0]["state"].values()
        for name, value in state.items()
        if name == "exp_avg"
    )
    assert held <= trained


@pytest.mark.long
def test_processes_share_the_statistics(runs, tmp_path, monkeypatch):
    model = runs[0].parent / "reward"
    two = ["trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2"]
    given = [*SMALL, *two, f"reward_model.classifier.path={model}", "iterations=3", f"run_dir={tmp_path / 'two'}"]
    call("tpg.train", given, monkeypatch)
    states = [checkpoint(folder, 3)["tpg"]["rewards"]["classifier"] for folder in (runs[0], tmp_path / "two")]
    assert states[1] == pytest.approx(states[0], rel=1e-4)
    for alone, shared in zip(rows(runs[0]), rows(tmp_path / "two"), strict=True):
        for name in ("reward", "rewards/classifier/mean", "rewards/classifier/raw_mean", "eval/reward"):
            assert float(shared[name]) == pytest.approx(float(alone[name]), abs=1e-3), name
