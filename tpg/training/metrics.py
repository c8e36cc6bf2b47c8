"""The numbers of an iteration, under the names the field knows."""

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from tpg.mismatch import gaps
from tpg.numerics import masked_mean, masked_sum
from tpg.rewards.model import RewardModel
from tpg.training.experience import Experience
from tpg.training.term_metrics import term_metrics
from tpg.trajectories import Trajectories

GAP_MEAN, GAP_MAX = (f"sampling/sampling_logp_difference/{what}" for what in ("mean", "max"))


def iteration_metrics(
    experience: Experience, gap: "SamplingGap", reward_model: RewardModel | None = None
) -> dict[str, float]:
    """What rollout, rewards and estimator say; means are over scored responses, and NaN where there is none.

    `gap` is what the update has seen; it stands where no pass has come before the update. What `reward_model` makes of
    its terms is told too, where it is one.
    """
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
        "completions/dropped": float((scored_B & ~experience.weighed.kept_B & ~experience.masked_B).sum()),
        "completions/masked": float(experience.masked_B.sum()),
        "completions/updated": float(experience.weighed.needed_B.sum()),
        "rollout/staleness": float((experience.iteration - 1 - trajectories.version_B).float().mean()),
        "entropy": float(-masked_mean(trajectories.rollout_logprobs_BT, trajectories.action_mask_BT)),
    }
    metrics |= experience.asked
    metrics |= experience.curriculum
    if trajectories.values_BT is not None and trajectories.returns_BT is not None:
        mask_BT = trajectories.action_mask_BT & experience.weighed.kept_B[:, None]
        metrics |= value_metrics(trajectories.values_BT[mask_BT], trajectories.returns_BT[mask_BT])
    if experience.weighed.kl is not None:
        metrics["kl"] = experience.weighed.kl
    if "coefficient" in experience.weighed.state["kl"]:
        metrics["kl_coefficient"] = experience.weighed.state["kl"]["coefficient"]
    if trajectories.old_logprobs_BT is not None:
        gap = SamplingGap()
        gap.add(trajectories.old_logprobs_BT, trajectories)
    metrics |= gap.summary()
    for name, values_B in trajectories.reward_terms_B.items():
        valid = values_B[~values_B.isnan()]
        metrics[f"rewards/{name}/mean"] = float(valid.mean())
        metrics[f"rewards/{name}/std"] = float(valid.std()) if len(valid) > 1 else 0.0
        metrics[f"rewards/{name}/unscored"] = float(values_B.isnan().sum())
        metrics[f"rewards/{name}/frac_unscored"] = float(values_B.isnan().double().mean())
    if isinstance(reward_model, RewardModel):
        metrics |= term_metrics(experience.scored, reward_model, experience.iteration)
    metrics |= {f"rewards/{name}": value for name, value in experience.scored.metrics.items()}
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
class SamplingGap:
    """How far the trainer's probabilities before the update are from the engine's, gathered part by part."""

    total: float = 0.0
    largest: float = 0.0
    tokens: int = 0
    log_ratios: list[Tensor] = field(default_factory=list)
    """Of whole responses, nats, a tensor a part."""

    def add(self, trainer_BT: Tensor, trajectories: Trajectories) -> None:
        """Take in some responses with the trainer's log-probabilities."""
        gap_BT = gaps(trainer_BT, trajectories).cpu().double()
        self.total += float(gap_BT.abs().sum())
        self.largest = max(self.largest, float(gap_BT.abs().max()))
        self.tokens += int(trajectories.action_mask_BT.sum())
        self.log_ratios.append(gap_BT.sum(-1))

    def summary(self) -> dict[str, float]:
        """Mean and largest distance of a token; mean, largest and effective sample size of pi_trainer / pi_engine.

        These ratios are of whole responses. The effective sample size is `(sum w)^2 / sum w^2` over their number: 1
        where they agree. NaN where no response was seen.
        """
        names = ("mismatch/mean", "mismatch/max", "mismatch/ess")
        if not self.tokens:
            return dict.fromkeys((GAP_MEAN, GAP_MAX, *names), math.nan)
        logs_B = torch.cat(self.log_ratios).clamp(max=700.0)  # the largest whose exponential is a number
        count = math.log(len(logs_B))
        mean = logs_B.logsumexp(0) - count
        square = (2 * logs_B).logsumexp(0) - count
        values = (math.exp(log) for log in (mean, logs_B.max(), 2 * mean - square))
        return {GAP_MEAN: self.total / self.tokens, GAP_MAX: self.largest, **dict(zip(names, values, strict=True))}


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
    gap: SamplingGap = field(default_factory=SamplingGap)
    """Of the responses that pass through the only update."""
    skipped_steps: int = 0
    """Those whose loss or gradient was not finite; the numbers here are of the others."""
    made: dict[str, Any] = field(default_factory=dict)
    """The sums over the steps that were made."""
    started: float = field(default_factory=time.perf_counter)

    def add(self, loss: Tensor, watched_BT: Mapping[str, Tensor], mask_BT: Tensor) -> None:
        """Take in a micro-batch."""
        self.loss += float(loss.detach())
        self.tokens += int(mask_BT.sum())
        for name, values_BT in watched_BT.items():
            self.watched[name] = self.watched.get(name, 0.0) + float(masked_sum(values_BT, mask_BT).sum())

    @property
    def step_loss(self) -> float:
        """The loss of the step in hand, the critic's included."""
        return self.loss - self.made.get("loss", 0.0) + self.critic_loss - self.made.get("critic_loss", 0.0)

    def step_made(self) -> None:
        """Keep what was gathered of the step in hand."""
        self.made = {name: getattr(self, name) for name in ("loss", "critic_loss", "tokens")}
        self.made["watched"] = dict(self.watched)

    def step_skipped(self) -> None:
        """Forget what was gathered of the step in hand, and count it."""
        self.skipped_steps += 1
        self.loss, self.critic_loss = self.made.get("loss", 0.0), self.made.get("critic_loss", 0.0)
        self.tokens, self.watched = self.made.get("tokens", 0), dict(self.made.get("watched", {}))

    def summary(self) -> dict[str, float]:
        """Loss and gradient norm a step, means over the tokens that were updated; NaN where no step was made."""
        steps: float = len(self.grad_norms) or (math.nan if self.skipped_steps else 1)
        critic = {
            "critic/loss": self.critic_loss / steps,
            "critic/grad_norm": sum(self.critic_grad_norms) / steps,
        }
        means = {name: total / max(1, self.tokens) for name, total in self.watched.items()}
        return {
            "loss": self.loss / steps,
            "grad_norm": sum(self.grad_norms) / steps,
            "learning_rate": self.learning_rate,
            "update/skipped_steps": self.skipped_steps,
            **(critic if self.critic_grad_norms else {}),
            **means,
        }


def joined(parts: Sequence[UpdateMetrics], started: float) -> UpdateMetrics:
    """What the replicas of a model have gathered in the same steps; their gradients, and so the norms, are one."""
    gap = SamplingGap(
        total=sum(part.gap.total for part in parts),
        largest=max(part.gap.largest for part in parts),
        tokens=sum(part.gap.tokens for part in parts),
        log_ratios=[ratios for part in parts for ratios in part.gap.log_ratios],
    )
    names = {name for part in parts for name in part.watched}
    return replace(
        parts[0],
        loss=sum(part.loss for part in parts),
        critic_loss=sum(part.critic_loss for part in parts),
        tokens=sum(part.tokens for part in parts),
        watched={name: sum(part.watched.get(name, 0.0) for part in parts) for name in sorted(names)},
        gap=gap,
        started=started,
    )


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
