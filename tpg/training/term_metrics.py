"""What the terms of a reward are seen to do, of one iteration's responses together."""

import math

import torch
from torch import Tensor

from tpg.rewards.combination import below
from tpg.rewards.model import RewardModel
from tpg.training.scoring import Scored


def term_metrics(scored: Scored, reward_model: RewardModel, iteration: int) -> dict[str, float]:
    """Each term's weight, correlation with the reward and share of it, and how many passed a gate.

    `scored` holds the responses of all processes. A share is `cov(part, sum) / var(sum)` over scored responses, where
    the parts are what the terms add to the sum that the combination makes rewards from: shares come to 1, and one is
    below 0 where a term works against the others. 0 where nothing varies.
    """
    trajectories, combination = scored.trajectories, reward_model.combination
    rewards_B, scored_B = trajectories.rewards_B, trajectories.scored_B
    assert rewards_B is not None
    assert scored_B is not None
    values = {name: values_B.tolist() for name, values_B in trajectories.reward_terms_B.items()}
    weights = combination.weights({name: term.weight for name, term in reward_model.terms.items()}, iteration)
    parts = combination.parts(values, weights, scored.samples)
    parts_BK = torch.tensor(list(parts.values()), dtype=torch.float64).view(len(parts), -1).T[scored_B]
    sums_B = parts_BK.sum(-1)
    found: dict[str, float] = {}
    for place, (name, values_B) in enumerate(trajectories.reward_terms_B.items()):
        both_B = scored_B & ~values_B.isnan()  # behind a shut gate a term needs no value
        found[f"{name}/weight"] = weights[name]
        found[f"{name}/correlation"] = correlation(values_B[both_B], rewards_B[both_B])
        found[f"{name}/share"] = (
            covariance(parts_BK[:, place], sums_B) / spread if (spread := variance(sums_B)) else 0.0
        )
        if name in combination.gates:
            passed = [not below(value, combination.gates[name]) for value in values_B[scored_B].tolist()]
            found[f"{name}/passed"] = sum(passed) / len(passed) if passed else math.nan
    return {f"rewards/{name}": value for name, value in found.items()}


def correlation(one_B: Tensor, other_B: Tensor) -> float:
    """Pearson's; 0 where either is constant."""
    spread = variance(one_B) * variance(other_B)
    return covariance(one_B, other_B) / spread**0.5 if spread else 0.0


def covariance(one_B: Tensor, other_B: Tensor) -> float:
    """The mean product of the distances from the means; 0 of nothing."""
    one_B, other_B = one_B.double(), other_B.double()
    return float(((one_B - one_B.mean()) * (other_B - other_B.mean())).mean()) if len(one_B) else 0.0


def variance(values_B: Tensor) -> float:
    """The mean squared distance from the mean; exactly 0 where all are equal, and of nothing."""
    return covariance(values_B, values_B) if len(values_B) and values_B.max() > values_B.min() else 0.0
