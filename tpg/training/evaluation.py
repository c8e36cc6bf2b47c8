"""The policy on held-out prompts."""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from lightning.pytorch import LightningModule, Trainer

from tpg.rewards.base import Sample
from tpg.rewards.match import last_number
from tpg.rewards.model import RewardModel
from tpg.rollouts.engine import Engine, no_step
from tpg.rollouts.sampling import Sampling
from tpg.training.metrics import success_estimates
from tpg.training.module import IterationCallback, TrajectoryPolicyGradient
from tpg.training.options import Evaluation
from tpg.training.parallel.ranks import Ranks
from tpg.training.prompts import PromptStream
from tpg.training.scoring import Scored, joined, score


@dataclass(frozen=True)
class EvaluationResult:
    """Success estimates by name (reward, pass@1, pass@k, maj@k, mean_length, ...) and what was judged.

    Among them, as `rewards/<term>/<name>`, is what loaded terms tell of themselves: a judge's cost, for example.
    """

    estimates: dict[str, float]
    samples: tuple[Sample, ...]
    rewards: list[float]
    """One a sample; NaN where unscored."""
    first_failure: dict[str, str] = field(default_factory=dict)
    """The cause of each failing term's first failure, in one line."""


@dataclass(frozen=True, eq=False)
class Evaluator:
    """Generates for held-out prompts, always with the same random numbers, and judges."""

    options: Evaluation
    engine: Engine
    held_out: PromptStream
    reward_model: RewardModel
    on_step: Callable[[], None] = no_step
    ranks: Ranks = field(default_factory=Ranks)
    """Who divides the prompts."""

    @torch.no_grad()
    def evaluate(self) -> EvaluationResult:
        """The policy as it is now."""
        n = self.options.responses_per_prompt
        prefixes = self.held_out.held_out(n, self.engine.options)[: self.options.prompts]
        sampling = self.engine.options.sampling
        if self.options.temperature is not None:
            sampling = Sampling(self.options.temperature, sampling.top_k, sampling.top_p, sampling.min_p)
        own = self.ranks.own(prefixes)

        def judged() -> Scored:
            rollout = self.engine.generate(own, sampling, on_step=self.on_step)
            return score(rollout, self.held_out.prompts.examples, self.engine.policy, self.reward_model)

        scored = joined(self.ranks.each(judged))
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
        estimates |= {f"rewards/{name}": value for name, value in scored.metrics.items()}
        return EvaluationResult(estimates, scored.samples, rewards_B.tolist(), scored.first_failure)


def _vote(response: str) -> str:
    """What a response stands for in a majority vote: its last number, or else its text."""
    number = last_number(response)
    return response.strip() if number is None else str(number.normalize())


class PeriodicEvaluation(IterationCallback):
    """Adds `eval/...` to an iteration's row: the policy that generated its rollout, on held-out prompts."""

    def __init__(self, evaluator: Evaluator) -> None:
        self.evaluator = evaluator
        self.final: EvaluationResult | None = None
        """Of the policy that the run leaves."""

    def on_iteration_start(self, module: TrajectoryPolicyGradient, iteration: int) -> None:
        """Evaluate before iteration 1, 1 + every, 1 + 2 every, ..."""
        every = self.evaluator.options.every
        if every and (iteration - 1) % every == 0:
            estimates = self._evaluate(module.trainer).estimates
            module.metrics |= {f"eval/{name}": value for name, value in estimates.items()}

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Evaluate what was trained, before Lightning takes it off its device."""
        assert isinstance(pl_module, TrajectoryPolicyGradient)
        pl_module.collector.gather()
        if self.evaluator.options.every:
            self.final = self._evaluate(trainer)

    def _evaluate(self, trainer: Trainer) -> EvaluationResult:
        with trainer.precision_plugin.forward_context():
            return self.evaluator.evaluate()
