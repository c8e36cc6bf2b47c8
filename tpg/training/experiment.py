"""A whole experiment as typed options, and what must hold between them."""

from dataclasses import replace
from pathlib import Path
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
from tpg.policies.base import Policy, PolicyOptions
from tpg.policies.critic import CriticOptions, NoCritic
from tpg.policies.sharding import check_divides
from tpg.rewards.base import Term
from tpg.rewards.combination import Combination, WeightedSum
from tpg.rewards.model import check_terms
from tpg.rollouts.engine import RolloutOptions
from tpg.rollouts.vllm.options import VLLM
from tpg.spelling import did_you_mean
from tpg.tasks.base import Task
from tpg.training.cautions import precision_warnings, warnings
from tpg.training.curriculum.base import Curriculum, NoCurriculum
from tpg.training.guards import PLACEHOLDER, Guard, for_each_term
from tpg.training.metric_names import NAMES, metric_names
from tpg.training.optimizers import AdamW8bit, OptimizerOptions
from tpg.training.options import Audit, Checkpointing, Evaluation, Update, WarmStart
from tpg.training.parallel.ranks import Ranks
from tpg.training.tracking.loggers import LoggerOptions
from tpg.training.trainer import TrainerOptions


@component
class Experiment:
    """Everything that `tpg.train` runs on."""

    seed: int = Field(ge=0, lt=2**62)
    iterations: int = Field(ge=1)
    policy: PolicyOptions
    task: Task
    reward_model: dict[str, Term] = Field(default_factory=dict)
    combination: Combination = Field(default_factory=WeightedSum)
    """What the terms come to."""
    reward_workers: int = Field(ge=1)
    """Processes that score responses."""
    reward_memory_gb: float | None = Field(default=None, gt=0)
    """What each of them may allocate, the interpreter and its imports included; None: no limit."""
    estimator: Estimator
    objective: Objective
    aggregation: Aggregation
    kl: KL
    mismatch: Mismatch
    critic: CriticOptions = Field(default_factory=NoCritic)
    entropy_coefficient: float = Field(ge=0)
    """Of the bonus for the entropy at every response token."""
    rollout: RolloutOptions
    curriculum: Curriculum = Field(default_factory=NoCurriculum)
    """Which prompts an iteration draws, and which of their groups it learns from."""
    update: Update
    optimizer: OptimizerOptions
    warm_start: WarmStart
    trainer: TrainerOptions
    evaluation: Evaluation
    audit: Audit
    checkpoint: Checkpointing
    guards: dict[str, Guard] = Field(default_factory=dict)
    logger: dict[str, LoggerOptions] = Field(default_factory=dict)
    shadow_estimators: dict[str, Estimator] = Field(default_factory=dict)
    """Whose gradients on the same rollouts are logged beside the trained one's."""
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

    @property
    def watched(self) -> dict[str, Guard]:
        """The guards, one for each term that counts where they are about terms."""
        scheduled = self.combination.schedules
        return for_each_term(
            self.guards, [name for name, term in self.reward_model.items() if term.weight or name in scheduled]
        )

    def with_estimator(self, estimator: Estimator) -> "Experiment":
        """The same with another estimator."""
        return replace(self, estimator=estimator)

    def on_this_machine(
        self, policy: Policy, kept: Path | None = None, ranks: Ranks | None = None
    ) -> tuple["Experiment", list[str]]:
        """With the trainer's precision chosen if it was left open, and what is to be said of that (see there)."""
        if self.trainer.precision != "auto":
            return self, []
        trainer, note = (ranks or Ranks()).from_main(lambda: self.trainer.on_this_machine(policy, kept))
        chosen = replace(self, trainer=trainer)
        return chosen, [note, *precision_warnings(chosen)]

    def check(self) -> list[str]:
        """Raise `UserError` for options that cannot go together or are missing; return warnings, a line each."""
        group, needed = self.rollout.responses_per_prompt, self.estimator.min_group
        if group < needed:
            raise UserError(
                f"rollout.responses_per_prompt={group}: estimator {type(self.estimator).__name__} compares the"
                f" responses to one prompt and needs at least {needed}"
            )
        responses, least = self.rollout.prompts * group, self.estimator.min_batch
        if responses < least:
            raise UserError(
                f"rollout.prompts={self.rollout.prompts}: estimator {type(self.estimator).__name__} compares the"
                f" responses of an iteration and needs at least {least}"
            )
        self.check_method()
        if self.rollout.lag and not self.mismatch.corrects:
            raise UserError(
                f"rollout.lag={self.rollout.lag}: the policy that generates is older than the one that learns, and"
                " nothing corrects for it; use mismatch=sequence_truncate, or rollout.lag=0"
            )
        if not self.reward_model:
            raise UserError("reward_model: is empty; name one or more terms, e.g. reward_model=[exact_answer]")
        if self.warm_start.steps and type(self.task).demonstrations is Task.demonstrations:
            raise UserError(
                f"warm_start.steps={self.warm_start.steps}: {type(self.task).__name__} has no demonstrations"
            )
        self._check_combination()
        self._check_callbacks()
        self._check_shadows()
        self._check_guards()
        check_terms(self.reward_model, self.task.columns())
        self.curriculum.check("curriculum", self.method, self.rollout, self.task.columns())
        self.task.check()
        self.policy.check()
        self.rollout.check()
        self.critic.check(self.policy)
        self.trainer.check()
        self._check_devices()
        self.optimizer.check()
        for name, logger in self.logger.items():
            logger.check(f"logger.{name}")
        return list(warnings(self))

    def check_method(self) -> None:
        """Raise `UserError` for parts of a method that ask of each other what they do not have."""
        estimator, objective, kl = (type(part).__name__ for part in (self.estimator, self.objective, self.kl))
        if self.estimator.needs_critic and isinstance(self.critic, NoCritic):
            raise UserError(f"estimator: {estimator} reads a critic's values; use critic=value_head or critic=separate")
        if self.objective.response_level:
            needs = f"objective {objective} needs one weight for a whole response"
            if not self.estimator.response_level:
                raise UserError(
                    f"estimator: {estimator} gives each token its own weight, but {needs}; use estimator=rloo, or"
                    " objective=ppo_clip"
                )
            if type(self.kl).shaped_weights is not KL.shaped_weights:
                raise UserError(f"kl: {kl} charges each token its own share, but {needs}; use kl=k1_in_reward")
        if self.objective.needs_groups:
            group, minibatch = self.rollout.responses_per_prompt, self.update.responses_per_minibatch
            compares = f"objective {objective} compares the responses to one prompt"
            if group < 2:
                raise UserError(f"rollout.responses_per_prompt={group}: {compares} and needs at least 2")
            if minibatch is not None and minibatch < self.rollout.prompts * group and minibatch % group:
                raise UserError(
                    f"update.responses_per_minibatch={minibatch}: {compares}; give a multiple of"
                    f" rollout.responses_per_prompt={group}"
                )

    def _check_devices(self) -> None:
        """What several processes, or those that divide a model, cannot do yet."""
        from tpg.training.shadow import asked_by

        trainer = self.trainer
        if trainer.processes > 1:
            for name, callback in self.callbacks.items():
                if getattr(callback, "compares_micro_batches", False):
                    raise UserError(f"callbacks.{name}: compares one process's micro-batches; use trainer.devices=1")
            if isinstance(self.rollout, VLLM):
                raise UserError(
                    f"rollout: vLLM follows the weights of one process, and trainer.strategy={trainer.strategy} starts"
                    f" {trainer.processes}; use rollout=native, or trainer.devices=1"
                )
        if not trainer.shards:
            return
        whole = f"and trainer.strategy={trainer.strategy} divides it; use trainer=ddp"
        if self.shadow_estimators:
            raise UserError(f"shadow_estimators: read the whole output layer, {whole}")
        if asked_by(self.estimator).score_norms:
            raise UserError(f"estimator.norm: takes each response's gradient in the whole model, {whole}")
        if isinstance(self.optimizer, AdamW8bit):
            raise UserError(
                f"optimizer: 8-bit moments are of whole weights, and trainer.strategy={trainer.strategy} divides them;"
                " use optimizer=adamw"
            )
        check_divides(self.policy, trainer.tensor_parallel_size)

    def _check_combination(self) -> None:
        """Refuse terms that there are not, and rewards by comparison for responses that are compared with none."""
        from tpg.training.shadow import asked_by

        self.combination.check(self.reward_model)
        group, asks = self.rollout.responses_per_prompt, asked_by(self.estimator)
        alone = "greedy responses" if asks.greedy else "continuations" if asks.continuations is not None else ""
        comparing = {f"combination: {type(self.combination).__name__}": self.combination.min_group}
        comparing |= {f"reward_model.{name}": term.min_group for name, term in self.reward_model.items()}
        for what, least in comparing.items():
            if least == 1:
                continue
            compares = f"{what} compares the responses to one prompt"
            if group < least:
                raise UserError(f"rollout.responses_per_prompt={group}: {compares} and needs at least {least}")
            if alone:
                raise UserError(
                    f"{compares}, but estimator {type(self.estimator).__name__} also scores {alone}, which have none to"
                    " be compared with; use estimator=rloo"
                )

    def _check_shadows(self) -> None:
        from tpg.training.shadow import check_shadows

        check_shadows(self.shadow_estimators, self.method, self.rollout.responses_per_prompt)
        if self.shadow_estimators and self.curriculum.mask_truncated:
            raise UserError(
                "shadow_estimators: weigh truncated responses too, which curriculum.mask_truncated=true leaves out of"
                " the trained gradient; use one of them"
            )

    def _check_guards(self) -> None:
        """Refuse a metric that no run has, unless a callback of the user's own may add it."""
        for name, guard in self.guards.items():
            guard.check(f"guards.{name}")
        if any(not type(callback).__module__.startswith("tpg.") for callback in self.callbacks.values()):
            return
        known = metric_names(
            self.reward_model,
            self.shadow_estimators,
            self.evaluation.responses_per_prompt,
            self.curriculum.hint_levels,
        )
        known += [name for name in NAMES if PLACEHOLDER in name]
        for name, guard in self.guards.items():
            if guard.metric not in known:
                near = did_you_mean(guard.metric, known)
                raise UserError(f"guards.{name}.metric={guard.metric}: no such metric; see docs/metrics.md{near}")

    def _check_callbacks(self) -> None:
        from lightning.pytorch import Callback

        for name, callback in self.callbacks.items():
            if not isinstance(callback, Callback):
                kind = type(callback).__name__
                raise UserError(f"callbacks.{name}: expected a Lightning Callback (_target_: ...), got {kind}")
