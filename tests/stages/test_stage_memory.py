"""A pass of a stage that does not fit into memory is made again in parts, and the step is the same."""

import pytest
import torch
from stage_options import checkpoint_of, rows_of, written

import tpg.reward
import tpg.sft
from tpg.errors import UserError
from tpg.policies.base import Policy
from tpg.stages.classifier import RewardClassifier
from tpg.stages.memory import Memory
from tpg.training.parallel.ranks import Ranks

POLICY = ["policy=tiny", "policy.hidden_size=32", "policy.layers=2", "policy.heads=2", "logger=[csv]", "trainer=cpu"]
TRAINING = [
    "trainer.precision=32-true",
    "optimizer.lr=1e-2",
    "epochs=1",
    "checkpoint.every=2",
    "checkpoint.keep_last=9",
]
SFT = [*POLICY, *TRAINING, "task=sort", "demonstrations.count=27", "responses_per_step=8"]
PAIRS = [{"prompt": f"p{i}:", "chosen": "x" * (i % 5 + 1), "rejected": "o" * (i % 3 + 1)} for i in range(27)]
REWARD = [*POLICY, *TRAINING, "preferences=dataset", "preferences.path=pairs.jsonl", "pairs_per_step=8"]
STAGES = {"sft": (tpg.sft, SFT, 64), "reward": (tpg.reward, REWARD, 96)}
"""Each with how many tokens a pass may have: eight rows have two to three times as many."""


class Backward(torch.autograd.Function):
    """Runs out of memory where the loss is differentiated."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        raise torch.OutOfMemoryError("CUDA out of memory.")


def small_memory(patch, tokens, during):
    """Passes of more than so many tokens do not fit; tells of each."""
    statistics, forward, passes = Policy.statistics, RewardClassifier.forward, []

    def fitting(cost, result, marked):
        fits = cost <= tokens or (during == "backward" and not torch.is_grad_enabled())
        passes.append((cost, fits))
        if not fits and during == "forward":
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return result() if fits else marked(result())

    def of_policy(self, record, *args, **options):
        cost = int(record.lengths_B.sum() + record.prompt_mask_BP.sum())
        return fitting(
            cost,
            lambda: statistics(self, record, *args, **options),
            lambda found: found._replace(logprobs=Backward.apply(found.logprobs)),
        )

    def of_classifier(self, conversations):
        cost = len(conversations) * max(map(len, conversations))
        return fitting(cost, lambda: forward(self, conversations), Backward.apply)

    patch.setattr(Policy, "statistics", of_policy)
    patch.setattr(RewardClassifier, "forward", of_classifier)
    return passes


def numbers(run):
    return [{name: float(value) for name, value in row.items() if value} for row in rows_of(run)]


@pytest.mark.parametrize("during", ["forward", "backward"])
@pytest.mark.parametrize("stage", STAGES)
def test_a_pass_that_does_not_fit_is_made_in_parts_with_the_same_numbers(entry, tmp_path, monkeypatch, stage, during):
    module, arguments, tokens = STAGES[stage]
    written(tmp_path / "pairs.jsonl", PAIRS)
    assert entry(module, *arguments, "run_dir=whole")[0] == 0
    with monkeypatch.context() as patch:
        passes = small_memory(patch, tokens, during)
        code, _, err = entry(module, *arguments, "run_dir=run")
    assert code == 0
    assert err
    assert all(line.startswith("warning: out of memory in a pass of ") for line in err)
    assert [fits for _, fits in passes].count(False) == len(err)  # once known, the bound is kept
    for row, whole in zip(numbers(tmp_path / "run"), numbers(tmp_path / "whole"), strict=True):
        assert row == pytest.approx(whole, rel=1e-4, abs=1e-5)
    found, expected = (checkpoint_of(tmp_path / name)["state_dict"] for name in ("run", "whole"))
    for name, weight in expected.items():
        torch.testing.assert_close(found[name], weight, atol=1e-5, rtol=1e-4)
    bound = checkpoint_of(tmp_path / "run")["tpg"]["memory"]
    assert bound["of"] == 4096
    assert tokens / 2 < bound["tokens"] <= 2 * tokens


def test_the_bound_is_kept_when_the_stage_goes_on_and_given_up_for_another(entry, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        small_memory(patch, 64, "backward")
        assert entry(tpg.sft, *SFT, "run_dir=run")[0] == 0
    (tmp_path / "run" / "summary.json").unlink()
    for path in sorted((tmp_path / "run" / "checkpoints").iterdir())[1:]:
        path.unlink()
    with monkeypatch.context() as patch:
        passes = small_memory(patch, 64, "backward")
        assert entry(tpg.sft, "resume=run")[::2] == (0, [])
    assert passes
    assert all(fits for _, fits in passes)
    memory = Memory(100)
    memory.restore({"tokens": 32, "of": 4096})
    assert memory.tokens == 100


def test_a_single_row_that_does_not_fit_ends_the_stage_in_one_line(entry, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        small_memory(patch, 3, "forward")
        code, _, err = entry(tpg.sft, *SFT, "run_dir=run")
    assert code == 2
    assert err[-1].startswith("error: out of memory: a single pass of ")
    assert "use policy.gradient_checkpointing=true" in err[-1]


def test_one_of_several_processes_cannot_repeat_a_pass():
    with pytest.raises(UserError, match=r"^out of memory on rank 1 in a pass of 80 .* tokens_per_microbatch=40$"):
        Memory(100).lower(80, divisible=True, ranks=Ranks(rank=1, world=2))
