"""What the tests of the real vLLM share: it lives in an environment of its own, `make test-vllm`."""

import importlib.util

import pytest
import torch
from builders import prefix

from tpg.policies.base import Policy
from tpg.rollouts.engine import Prefix
from tpg.rollouts.sampling import GREEDY, Sampling
from tpg.rollouts.transformers import Transformers
from tpg.trajectories import Trajectories

needs_vllm = pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="needs vllm: make test-vllm")

PAD, EOS = 0, 1
LONG = [3 + i % 90 for i in range(180)]
"""More than the 32 tokens that are kept together on a CPU."""
PREFIXES = [
    prefix([40, 41, 42, 43, 44], 4, row=0),
    prefix([50], 4, row=1),
    prefix([60, PAD, EOS, 61], 3, row=2),
    prefix(LONG, 3, row=3),
]
SIZES = {"max_prompt_tokens": 200, "max_response_tokens": 100, "kv_cache_gib": 0.25}
SAMPLINGS = [
    Sampling(),
    Sampling(temperature=0.6),
    Sampling(top_p=0.8),
    Sampling(temperature=0.6, top_k=5, min_p=0.05),
    GREEDY,
]


def responses(trajectories: Trajectories) -> list[list[int]]:
    masked = zip(trajectories.response_ids_BT, trajectories.response_mask_BT, strict=True)
    return [ids_T[mask_T].tolist() for ids_T, mask_T in masked]


def assert_same(one: Trajectories, other: Trajectories) -> None:
    assert responses(one) == responses(other)
    for name in ("finish_reason_B", "action_mask_BT", "prompt_ids_BP", "prompt_mask_BP", "row_B", "parent_B"):
        assert torch.equal(getattr(one, name), getattr(other, name)), name
    torch.testing.assert_close(one.rollout_logprobs_BT, other.rollout_logprobs_BT, rtol=0, atol=1e-3)


def reference(policy: Policy, prefixes: list[Prefix] = PREFIXES, sampling: Sampling = GREEDY) -> Trajectories:
    return Transformers().build(policy).generate(prefixes, sampling)


def perturbed(policy: Policy, factor: float) -> None:
    with torch.no_grad():
        for parameter in policy.model.parameters():
            parameter.mul_(factor)


class Enough(Exception):  # noqa: N818
    """Raised to stop."""
