"""A whole experiment as typed options, and what must hold between them."""

from typing import Any

from pydantic import Field

from tpg.aggregation import Aggregation
from tpg.component import component
from tpg.errors import UserError
from tpg.estimators.base import Estimator
from tpg.kl import KL
from tpg.method import Method
from tpg.mismatch import Mismatch
from tpg.objectives.base import Objective
from tpg.policies.base import PolicyOptions
from tpg.rewards.base import RewardTerm
from tpg.rewards.model import check_columns
from tpg.rollouts.engine import Engine
from tpg.tasks.base import Task
from tpg.training.loggers import LoggerOptions
from tpg.training.options import Checkpointing, Evaluation, Optimizer, TrainerOptions, Update, WarmStart


@component
class Experiment:
    """Everything that `tpg.train` runs on."""

    seed: int = Field(ge=0, lt=2**62)
    iterations: int = Field(ge=1)
    policy: PolicyOptions
    task: Task
    reward_model: dict[str, RewardTerm] = Field(default_factory=dict)
    reward_workers: int = Field(ge=1)
    """Processes that score responses."""
    estimator: Estimator
    objective: Objective
    aggregation: Aggregation
    kl: KL
    mismatch: Mismatch
    entropy_coefficient: float = Field(ge=0)
    """Of the bonus for the entropy at every response token."""
    rollout: Engine
    update: Update
    optimizer: Optimizer
    warm_start: WarmStart
    trainer: TrainerOptions
    evaluation: Evaluation
    checkpoint: Checkpointing
    logger: dict[str, LoggerOptions] = Field(default_factory=dict)
    callbacks: dict[str, Any] = Field(default_factory=dict)

    @property
    def method(self) -> Method:
        """The parts that turn scored trajectories into a gradient."""
        return Method(
            estimator=self.estimator,
            objective=self.objective,
            aggregation=self.aggregation,
            kl=self.kl,
            mismatch=self.mismatch,
            entropy_coefficient=self.entropy_coefficient,
        )

    def check(self) -> list[str]:
        """Raise `UserError` for options that cannot go together or are missing; return warnings, a line each."""
        group, needed = self.rollout.responses_per_prompt, self.estimator.min_group
        if group < needed:
            raise UserError(
                f"rollout.responses_per_prompt={group}: estimator {type(self.estimator).__name__} compares the"
                f" responses to one prompt and needs at least {needed}"
            )
        if not self.reward_model:
            raise UserError("reward_model: is empty; name one or more terms, e.g. reward_model=[exact_answer]")
        if self.warm_start.steps and type(self.task).demonstrations is Task.demonstrations:
            raise UserError(
                f"warm_start.steps={self.warm_start.steps}: {type(self.task).__name__} has no demonstrations"
            )
        self._check_callbacks()
        check_columns(self.reward_model, self.task.columns())
        self.task.check()
        self.policy.check()
        self.trainer.check()
        return list(self._warnings())

    def _check_callbacks(self) -> None:
        from lightning.pytorch import Callback

        for name, callback in self.callbacks.items():
            if not isinstance(callback, Callback):
                kind = type(callback).__name__
                raise UserError(f"callbacks.{name}: expected a Lightning Callback (_target_: ...), got {kind}")

    def _warnings(self) -> Any:
        responses = self.rollout.prompts * self.rollout.responses_per_prompt
        steps = self.update.steps(responses)
        if steps > 1 and not self.objective.off_policy:
            yield (
                f"{steps} optimizer steps an iteration, but objective {type(self.objective).__name__} corrects for"
                " none: all but the first are off-policy; objective=ppo_clip corrects"
            )
        if self.rollout.sampling.truncates:
            yield (
                "rollout.top_k, top_p or min_p cut the policy's distribution: responses are no samples of the policy"
                " whose gradient is taken, which biases it"
            )
