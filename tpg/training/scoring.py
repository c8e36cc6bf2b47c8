"""Rewards onto trajectories."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from tpg.policies.base import Policy
from tpg.rewards.base import Sample
from tpg.rewards.model import RewardModel
from tpg.tasks.base import Example
from tpg.trajectories import Trajectories


@dataclass(frozen=True)
class Scored:
    """Trajectories with rewards, the texts that were scored, and what went wrong."""

    trajectories: Trajectories
    samples: tuple[Sample, ...]
    failures: dict[str, dict[str, int]]
    """How often a term failed, by reason."""
    first_failure: dict[str, str]


def score(trajectories: Trajectories, examples: Sequence[Example], policy: Policy, reward_model: RewardModel) -> Scored:
    """Every trajectory's reward; `examples` are the rows that `row_B` counts. Unscored rewards read 0."""
    samples = tuple(
        _sample(ids[mask].tolist(), bool(truncated), examples[row], policy)
        for ids, mask, truncated, row in zip(
            trajectories.response_ids_BT,
            trajectories.response_mask_BT,
            trajectories.truncated_B,
            trajectories.row_B.tolist(),
            strict=True,
        )
    )
    rewards = reward_model.score(samples)
    scored = trajectories.replace(
        rewards_B=torch.tensor(rewards.total, dtype=torch.float32).nan_to_num(),
        scored_B=torch.tensor(rewards.scored),
        reward_terms_B={name: torch.tensor(values, dtype=torch.float32) for name, values in rewards.terms.items()},
    )
    return Scored(scored, samples, rewards.failures, rewards.first_failure)


def _sample(token_ids: list[int], truncated: bool, example: Example, policy: Policy) -> Sample:
    return Sample(
        prompt=example.text,
        response=policy.decode(token_ids),
        token_ids=tuple(token_ids),
        truncated=truncated,
        answer=example.answer,
        columns=example.columns,
    )
