"""The policy on held-out prompts."""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from tpg.rewards.base import Sample
from tpg.rewards.match import last_number
from tpg.rewards.model import RewardModel
from tpg.rollouts.engine import Engine, no_step
from tpg.rollouts.sampling import Sampling
from tpg.training.metrics import success_estimates
from tpg.training.module import IterationCallback, TrajectoryPolicyGradient
from tpg.training.options import Evaluation
from tpg.training.prompts import PromptStream
from tpg.training.scoring import score


@dataclass(frozen=True)
class EvaluationResult:
    """Success estimates by name (reward, pass@1, pass@k, maj@k, mean_length, ...) and what was judged."""

    estimates: dict[str, float]
    samples: tuple[Sample, ...]
    rewards: list[float]
    """One a sample; NaN where unscored."""


@dataclass(frozen=True, eq=False)
class Evaluator:
    """Generates for held-out prompts, always with the same random numbers, and judges."""

    options: Evaluation
    engine: Engine
    held_out: PromptStream
    reward_model: RewardModel
    on_step: Callable[[], None] = no_step

    @torch.no_grad()
    def evaluate(self) -> EvaluationResult:
        """The policy as it is now."""
        n = self.options.responses_per_prompt
        prefixes = self.held_out.held_out(n, self.engine.options)[: self.options.prompts]
        sampling = self.engine.options.sampling
        if self.options.temperature is not None:
            sampling = Sampling(self.options.temperature, sampling.top_k, sampling.top_p, sampling.min_p)
        rollout = self.engine.generate(prefixes, sampling, on_step=self.on_step)
        scored = score(rollout, self.held_out.prompts.examples, self.engine.policy, self.reward_model)
        trajectories = scored.trajectories
        assert trajectories.rewards_B is not None
        assert trajectories.scored_B is not None
        rewards_B = torch.where(trajectories.scored_B, trajectories.rewards_B, torch.nan)
        texts = [_vote(sample.response) for sample in scored.samples]
        has_answers = all(sample.answer is not None for sample in scored.samples)
        votes = [texts[i : i + n] for i in range(0, len(texts), n)] if has_answers else None
        estimates = success_estimates(rewards_B.view(-1, n), votes, self.options.success_reward)
        estimates["mean_length"] = float(trajectories.lengths_B.float().mean())
        estimates["clipped_ratio"] = float(trajectories.truncated_B.float().mean())
        estimates["unscored"] = float((~trajectories.scored_B).sum())
        return EvaluationResult(estimates, scored.samples, rewards_B.tolist())


def _vote(response: str) -> str:
    """What a response stands for in a majority vote: its last number, or else its text."""
    number = last_number(response)
    return response.strip() if number is None else str(number.normalize())


class PeriodicEvaluation(IterationCallback):
    """Adds `eval/...` to an iteration's row: the policy that generated its rollout, on held-out prompts."""

    def __init__(self, evaluator: Evaluator) -> None:
        self.evaluator = evaluator

    def on_iteration_start(self, module: TrajectoryPolicyGradient, iteration: int) -> None:
        """Evaluate before iteration 1, 1 + every, 1 + 2 every, ..."""
        every = self.evaluator.options.every
        if every and (iteration - 1) % every == 0:
            with module.trainer.precision_plugin.forward_context():
                estimates = self.evaluator.evaluate().estimates
            module.metrics |= {f"eval/{name}": value for name, value in estimates.items()}
