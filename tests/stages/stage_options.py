"""Stages of tests, from options and on the command line."""

import csv
import json
import sys

import pytest
import torch
from hydra.core.global_hydra import GlobalHydra

from tpg.policies.tiny import Tiny
from tpg.stages.options import PreferenceStage, SupervisedStage
from tpg.tasks.addition import Addition
from tpg.tasks.demonstrations import DatasetDemonstrations
from tpg.tasks.preferences import DatasetPreferences
from tpg.training.optimizers import Optimizer
from tpg.training.options import Checkpointing
from tpg.training.trainer import TrainerOptions

SMALL = {"hidden_size": 32, "layers": 2, "heads": 2}
TIMES = ("step_time", "perf/throughput")
SHARED = {"seed": 0, "epochs": 1, "max_tokens": 64, "overlong": "raise", "evaluate_every": None}
PARTS = {
    "task": Addition(),
    "optimizer": Optimizer(lr=1e-3),
    "trainer": TrainerOptions(accelerator="cpu"),
    "checkpoint": Checkpointing(),
}


def supervised_stage(**options):
    """Options of `tpg.sft`; nothing reads the path."""
    data = DatasetDemonstrations(path="rows.jsonl")
    own = {"demonstrations": data, "responses_per_step": 4, "tokens_per_microbatch": None, "policy": Tiny(**SMALL)}
    return SupervisedStage(**{**SHARED, **PARTS, **own, **options})


def preference_stage(**options):
    """Options of `tpg.reward`."""
    own = {"preferences": DatasetPreferences(path="rows.jsonl"), "pairs_per_step": 4, "tokens_per_microbatch": None}
    loss = {"margin": 0.0, "centering": 0.0, "bins": 10, "policy": Tiny(**SMALL)}
    return PreferenceStage(**{**SHARED, **PARTS, **own, **loss, **options})


def written(path, rows):
    """A JSONL file."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def run_in(folder, module, *arguments):
    """One command in a folder, in this process; for fixtures of a whole file, which can have no `entry`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("HYDRA_FULL_ERROR", "1")
        patch.setattr(sys, "argv", [module.__name__, *arguments])
        GlobalHydra.instance().clear()
        module.main()
        GlobalHydra.instance().clear()
    return folder / "run"


def rows_of(run):
    """Metrics without times."""
    with (run / "metrics.csv").open(newline="") as file:
        return [{name: value for name, value in row.items() if name not in TIMES} for row in csv.DictReader(file)]


def checkpoint_of(run):
    """The newest checkpoint."""
    return torch.load(max(run.glob("checkpoints/*.ckpt")), weights_only=True)


def assert_same_run(run, other, model):
    """Metrics but for times, trained weights, the optimizer's state and the written model are bit for bit the same."""
    assert rows_of(run) == rows_of(other)
    one, two = checkpoint_of(run), checkpoint_of(other)
    assert one["state_dict"].keys() == two["state_dict"].keys()
    assert all(torch.equal(weight, two["state_dict"][name]) for name, weight in one["state_dict"].items())
    states = [each["optimizer_states"][0]["state"] for each in (one, two)]
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(state["exp_avg"], states[1][name]["exp_avg"]) for name, state in states[0].items())
    assert one["lr_schedulers"] == two["lr_schedulers"]
    assert (run / model / "model.safetensors").read_bytes() == (other / model / "model.safetensors").read_bytes()
    summaries = [json.loads((each / "summary.json").read_text()) for each in (run, other)]
    for summary in summaries:
        for name in ("seconds", "last"):
            summary.pop(name)
    assert summaries[0] == summaries[1]


def assert_passes_change_nothing(made, bounds, tolerance):
    """A step's loss, other metrics and gradient are the same in one pass, in some and in one a row; `made` by bound."""
    rows, found = [4, 0, 2, 1, 3], []
    for tokens in bounds:
        module = made(tokens)
        passes = module.passes(rows)
        assert sorted(row for part in passes for row in part) == sorted(rows)
        shares = [module.share(part, rows) for part in passes]
        total = sum(loss for loss, _ in shares)
        total.backward()
        others = [sum(each[name] for _, each in shares) for name in shares[0][1]]
        gradients = [weight.grad for weight in module.trained.parameters()]
        found.append((len(passes), [total.item(), *others], gradients))
    assert found[0][0] == 1 < found[1][0] < found[2][0] == 5
    for _, numbers, gradients in found[1:]:
        assert numbers == pytest.approx(found[0][1], abs=tolerance)
        for gradient, whole in zip(gradients, found[0][2], strict=True):
            torch.testing.assert_close(gradient, whole, atol=tolerance, rtol=10 * tolerance)
