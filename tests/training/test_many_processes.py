"""The same numbers on any number of processes, however they share a model."""

import math
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from iterations import CPU, token_reward, trained, weights
from processes_of_a_group import in_processes

from tpg.aggregation import SequenceMean, TokenMean
from tpg.estimators.boundaries import EveryTokens
from tpg.estimators.gae import GAE
from tpg.estimators.group import GRPO, GroupMean
from tpg.estimators.reinforce_pp import ReinforcePP
from tpg.estimators.remax import ReMax
from tpg.estimators.segment import Segment
from tpg.kl import KLInLoss, KLInReward
from tpg.mismatch import Truncated
from tpg.objectives.p3o import P3O
from tpg.objectives.ppo_clip import PPOClip
from tpg.policies.critic import SeparateCritic, ValueHead
from tpg.rollouts.native.engine import Native
from tpg.rollouts.transformers import Transformers
from tpg.training.curriculum.difficulty import DifficultyBalanced
from tpg.training.curriculum.dynamic_sampling import DynamicSampling
from tpg.training.curriculum.ghpo import GHPO
from tpg.training.options import Update
from tpg.training.parallel.ranks import Ranks

LENGTHS = Native(prompts=3, responses_per_prompt=4, max_response_tokens=8, batch_responses=4)
FEW = replace(LENGTHS, prompts=3, responses_per_prompt=2)
STEPS = Update(epochs=2, responses_per_minibatch=5, tokens_per_microbatch=32)


def unscored_for_one_prompt(sample):
    """A group that is unscored altogether, others as ever."""
    return math.nan if sample.prompt == "0" or sample.token_ids[0] % 5 == 0 else token_reward(sample)


def rarely(sample):
    """One response in seven succeeds."""
    return float(sample.token_ids[-1] % 7 == 0)


CASES = {
    "group": {"estimator": GRPO(), "objective": PPOClip(), "update": STEPS, "clip": 0.1, "aggregation": TokenMean()},
    "one minibatch, mean of means": {"aggregation": SequenceMean(), "update": Update(tokens_per_microbatch=24)},
    "whitened over the batch": {"estimator": ReinforcePP(), "kl": KLInReward(target=0.01)},
    "unscored": {"reward": unscored_for_one_prompt, "update": Update(responses_per_microbatch=2), "clip": 0.5},
    "pairs": {"estimator": GroupMean(), "objective": P3O(), "update": Update(responses_per_minibatch=8, epochs=2)},
    "kl and entropy": {
        "kl": KLInLoss(),
        "entropy_coefficient": 0.01,
        "engine": Transformers(prompts=3, responses_per_prompt=2, max_response_tokens=8, batch_responses=4),
    },
    "head": {"estimator": GAE(), "critic": ValueHead(lr=0.1, detached=False), "update": STEPS, "clip": 0.1},
    "critic": {"estimator": GAE(), "critic": SeparateCritic(lr=0.1, warmup_iterations=1), "update": STEPS, "clip": 0.1},
    "greedy": {"estimator": ReMax(), "engine": replace(LENGTHS, prompts=1)},
    "continuations": {"estimator": Segment(continuations=2, boundaries=EveryTokens(tokens=3))},
    "others drawn": {"reward": rarely, "engine": FEW, "curriculum": DynamicSampling(max_rounds=4)},
    "hints": {"reward": rarely, "engine": FEW, "curriculum": GHPO(), "answer": "123456"},
    "measured": {"engine": FEW, "curriculum": DifficultyBalanced(success_reward=0.5)},
    "lag": {"engine": replace(LENGTHS, lag=1), "mismatch": Truncated()},
}
STRATEGIES = {
    "ddp": (2, replace(CPU, strategy="ddp", devices=2)),
    "fsdp": (2, replace(CPU, strategy="fsdp", devices=2)),
    "tensor_parallel": (2, replace(CPU, strategy="tensor_parallel", devices=2)),
    "fsdp_tp": (4, replace(CPU, strategy="fsdp_tp", devices=4)),
}
SOME = ("group", "kl and entropy", "critic", "lag")
"""In which a divided model, reference or critic shows at once."""
OTHERS = tuple(sorted(CASES.keys() - set(SOME)))


def outcomes(hardware, world, cases=tuple(CASES)):
    """By case the weights after two iterations, the tokens that were generated, and the row of metrics."""
    ranks = Ranks(torch.distributed.get_rank(), world, hardware.tensor_parallel_size) if world > 1 else Ranks()
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in cases:
            options = {"engine": LENGTHS, "iterations": 2, **CASES[name]}
            module = trained(Path(folder), hardware=hardware, ranks=ranks, **options)
            trajectories = module.experience.trajectories
            row = {key: value for key, value in module.metrics.items() if "timing" not in key and "perf" not in key}
            row.pop("step_time")
            tokens = trajectories.response_ids_BT[trajectories.response_mask_BT]
            found[name] = (weights(module), tokens, trajectories.weights_BT, row)
    return found


@pytest.fixture(scope="module")
def alone():
    """What one process finds."""
    return outcomes(CPU, 1)


@pytest.mark.parametrize(
    ("strategy", "cases"),
    [
        ("ddp", tuple(CASES)),
        ("fsdp", SOME),
        pytest.param("fsdp", OTHERS, marks=pytest.mark.long),
        pytest.param("tensor_parallel", tuple(CASES), marks=pytest.mark.long),
        pytest.param("fsdp_tp", tuple(CASES), marks=pytest.mark.long),
    ],
    ids=["ddp", "fsdp", "fsdp, the other cases", "tensor_parallel", "fsdp_tp"],
)
def test_the_same_weights_tokens_and_metrics(strategy, cases, alone):
    world, hardware = STRATEGIES[strategy]
    for rank, found in enumerate(in_processes(world, outcomes, hardware, world, cases, timeout_s=900)):
        for case in cases:
            expected = alone[case]
            try:
                for given, wanted in zip(found[case][:3], expected[:3], strict=True):
                    torch.testing.assert_close(given, wanted, rtol=1e-5, atol=1e-6)
                assert found[case][3] == pytest.approx(expected[3], rel=1e-4, abs=1e-6, nan_ok=True)
            except AssertionError as error:
                raise AssertionError(f"{strategy}, rank {rank}, {case}: {error}") from error
