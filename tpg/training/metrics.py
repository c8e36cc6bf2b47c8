"""The numbers of an iteration, under the names the field knows."""

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from tpg.mismatch import ratios
from tpg.numerics import masked_mean, masked_sum
from tpg.training.experience import Experience
from tpg.trajectories import Trajectories


def iteration_metrics(experience: Experience) -> dict[str, float]:
    """What rollout, rewards and estimator say; means are over scored responses, and NaN where there is none."""
    trajectories = experience.trajectories
    rewards_B, scored_B, group_B = trajectories.rewards_B, trajectories.scored_B, trajectories.group_B
    assert rewards_B is not None
    assert scored_B is not None
    scored = rewards_B[scored_B]
    lengths_B = trajectories.lengths_B.float()
    deviations, zero = _group_spread(rewards_B, scored_B, group_B)
    metrics = {
        "reward": float(scored.mean()),
        "reward_std": deviations,
        "frac_reward_zero_std": zero,
        "completions/mean_length": float(lengths_B.mean()),
        "completions/max_length": float(lengths_B.max()),
        "completions/clipped_ratio": float(trajectories.truncated_B.float().mean()),
        "completions/unscored": float((~scored_B).sum()),
        "completions/dropped": float((scored_B & ~experience.weighed.kept_B).sum()),
        "completions/updated": float(experience.weighed.needed_B.sum()),
        "entropy": float(-masked_mean(trajectories.rollout_logprobs_BT, trajectories.action_mask_BT)),
    }
    metrics |= experience.asked
    if trajectories.values_BT is not None and trajectories.returns_BT is not None:
        mask_BT = trajectories.action_mask_BT & experience.weighed.kept_B[:, None]
        metrics |= value_metrics(trajectories.values_BT[mask_BT], trajectories.returns_BT[mask_BT])
    if experience.weighed.kl is not None:
        metrics["kl"] = experience.weighed.kl
    if "coefficient" in experience.weighed.state["kl"]:
        metrics["kl_coefficient"] = experience.weighed.state["kl"]["coefficient"]
    if trajectories.old_logprobs_BT is not None:
        gap_BT = (trajectories.old_logprobs_BT - trajectories.rollout_logprobs_BT).abs()
        metrics["rollout/logprob_gap"] = float(masked_mean(gap_BT, trajectories.action_mask_BT))
        metrics |= _mismatch(trajectories)
    for name, values_B in trajectories.reward_terms_B.items():
        valid = values_B[~values_B.isnan()]
        metrics[f"rewards/{name}/mean"] = float(valid.mean())
        metrics[f"rewards/{name}/std"] = float(valid.std()) if len(valid) > 1 else 0.0
        metrics[f"rewards/{name}/unscored"] = float(values_B.isnan().sum())
    return metrics


def value_metrics(values_N: Tensor, returns_N: Tensor) -> dict[str, float]:
    """How a critic's values of N tokens met what they are to predict.

    The explained variance is `1 - Var(R - V) / Var(R)`: 1 for a critic that is always right, 0 for a constant, below 0
    for one that is worse; 0 where the returns do not vary, as there is nothing to explain.
    """
    values_N, returns_N = values_N.double(), returns_N.double()
    spread = float(returns_N.var(correction=0)) if len(returns_N) and returns_N.max() > returns_N.min() else 0.0
    unexplained = float((returns_N - values_N).var(correction=0)) if spread else 0.0
    return {
        "critic/explained_variance": 1.0 - unexplained / spread if spread else 0.0,
        "critic/value_mean": float(values_N.mean()) if len(values_N) else 0.0,
    }


def _mismatch(trajectories: Trajectories) -> dict[str, float]:
    """How far the trainer's probabilities of whole responses are from the engine's.

    The effective sample size is `(sum w)^2 / sum w^2` over the number of responses: 1 where they agree.
    """
    ratio_B = ratios(trajectories, "sequence")[:, 0]
    ess = ratio_B.sum().square() / (ratio_B.square().sum() * len(ratio_B))
    return {"mismatch/mean": float(ratio_B.mean()), "mismatch/max": float(ratio_B.max()), "mismatch/ess": float(ess)}


def _group_spread(rewards_B: Tensor, scored_B: Tensor, group_B: Tensor) -> tuple[float, float]:
    """Mean over groups of the standard deviation, and the share of groups whose rewards are all equal."""
    deviations, zeros = [], []
    for group in range(int(group_B.max()) + 1):
        rewards = rewards_B[(group_B == group) & scored_B]
        if len(rewards):
            deviations.append(float(rewards.std()) if len(rewards) > 1 else 0.0)
            zeros.append(float(rewards.max() == rewards.min()))
    if not zeros:
        return math.nan, math.nan
    return sum(deviations) / len(deviations), sum(zeros) / len(zeros)


@dataclass
class UpdateMetrics:
    """What is gathered while the minibatches run."""

    loss: float = 0.0
    grad_norms: list[float] = field(default_factory=list)
    learning_rate: float = 0.0
    critic_loss: float = 0.0
    critic_grad_norms: list[float] = field(default_factory=list)
    """Empty without a critic."""
    watched: dict[str, float] = field(default_factory=dict)
    tokens: int = 0
    started: float = field(default_factory=time.perf_counter)

    def add(self, loss: Tensor, watched_BT: Mapping[str, Tensor], mask_BT: Tensor) -> None:
        """Take in a micro-batch."""
        self.loss += float(loss.detach())
        self.tokens += int(mask_BT.sum())
        for name, values_BT in watched_BT.items():
            self.watched[name] = self.watched.get(name, 0.0) + float(masked_sum(values_BT, mask_BT).sum())

    def summary(self) -> dict[str, float]:
        """Loss and gradient norm a step, means over the tokens that were updated."""
        steps = max(1, len(self.grad_norms))
        critic = {
            "critic/loss": self.critic_loss / steps,
            "critic/grad_norm": sum(self.critic_grad_norms) / steps,
        }
        means = {name: total / max(1, self.tokens) for name, total in self.watched.items()}
        return {
            "loss": self.loss / steps,
            "grad_norm": sum(self.grad_norms) / steps,
            "learning_rate": self.learning_rate,
            **(critic if self.critic_grad_norms else {}),
            **means,
        }


def success_estimates(rewards_KN: Tensor, answers: list[list[str]] | None, success_reward: float) -> dict[str, float]:
    """Mean reward, pass@1, pass@n and maj@n of K prompts with n responses each; unscored responses fail.

    pass@k is the unbiased `1 - C(n - c, k) / C(n, k)` for c solved of n (arXiv 2107.03374).
    """
    n = rewards_KN.shape[1]
    solved_KN = torch.nan_to_num(rewards_KN, nan=-math.inf) >= success_reward
    estimates = {"reward": float(rewards_KN.nanmean())}
    for k in sorted({1, n}):
        shares = [pass_at_k(n, int(c), k) for c in solved_KN.sum(-1)]
        estimates[f"pass@{k}"] = sum(shares) / len(shares)
    if answers is not None and n > 1:
        votes = [_majority_solved(row, solved) for row, solved in zip(answers, solved_KN.tolist(), strict=True)]
        estimates[f"maj@{n}"] = sum(votes) / len(votes)
    return estimates


def pass_at_k(n: int, solved: int, k: int) -> float:
    """The probability that one of k responses drawn from n is among the `solved` ones."""
    return 1.0 - math.comb(n - solved, k) / math.comb(n, k)


def _majority_solved(answers: list[str], solved: list[bool]) -> float:
    counts = {answer: answers.count(answer) for answer in answers}
    return float(solved[answers.index(max(counts, key=lambda answer: counts[answer]))])
