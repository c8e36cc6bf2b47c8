"""What every engine is tried on."""

import torch
from builders import prefix

from tpg.policies.base import Policy
from tpg.randomness import uniforms
from tpg.rollouts.engine import Prefix
from tpg.rollouts.sampling import Sampling, draw
from tpg.trajectories import Trajectories

PAD, EOS = 0, 1

# Lengths differ, one prompt is a single token, and one holds the pad and the end token.
PREFIXES = [
    prefix([40, 41, 42, 43, 44], 4, row=0),
    prefix([50], 4, row=1),
    prefix([60, PAD, EOS, 61], 3, row=2),
]


def responses(trajectories: Trajectories) -> list[list[int]]:
    masked = zip(trajectories.response_ids_BT, trajectories.response_mask_BT, strict=True)
    return [ids_T[mask_T].tolist() for ids_T, mask_T in masked]


def naive(policy: Policy, wanted: Prefix, random_key: int, sampling: Sampling) -> list[int]:
    """One response, a forward pass over the whole sequence for every token."""
    ids = [*wanted.prompt_ids, *wanted.response_ids]
    start = len(ids)
    for uniform_1 in uniforms([random_key], wanted.max_tokens)[0][:, None]:
        with torch.no_grad():
            logits_1V = policy.model(input_ids=torch.tensor([ids])).logits[:, -1]
        ids.append(int(draw(logits_1V, uniform_1, sampling).tokens_B))
        if ids[-1] == EOS:
            break
    return ids[start:]


def assert_same(one: Trajectories, other: Trajectories) -> None:
    assert responses(one) == responses(other)
    assert one.finish_reason_B.tolist() == other.finish_reason_B.tolist()
    torch.testing.assert_close(one.rollout_logprobs_BT, other.rollout_logprobs_BT, rtol=0, atol=1e-4)
