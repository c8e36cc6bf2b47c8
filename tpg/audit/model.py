"""The audit on the real policy: noise and direction of gradient estimates, from independent batches of rollouts.

Every estimator sees the same rollouts of the policy as the experiment starts it. A gradient is a sketch of the one in
the output layer's weight (`tpg.policies.sketch`). Its true value is not known: what stands for it is the mean over the
*other* batches of an unbiased estimate, so that no noise is counted as signal.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import Tensor

from tpg.aggregation import SequenceSum
from tpg.audit.noise import Measured, rows_of
from tpg.errors import UserError
from tpg.estimators.base import Answers, Estimator, Requests
from tpg.estimators.reinforce import Reinforce
from tpg.estimators.rloo import RLOO
from tpg.method import Method
from tpg.objectives.policy_gradient import PolicyGradient
from tpg.policies.sketch import Projections, sketched
from tpg.rewards.combination import WeightedSum
from tpg.rewards.model import RewardModel
from tpg.rollouts.engine import Engine, no_step
from tpg.training.answers import Answering
from tpg.training.experiment import Experiment
from tpg.training.preparation import Prepared
from tpg.training.run import collector_of
from tpg.training.scoring import Scored, score
from tpg.training.shadow import group_gradients
from tpg.training.warm_start import warm_start
from tpg.trajectories import Trajectories

SKETCH = 64
"""Of the vocabulary and of the hidden state: a gradient is a vector of SKETCH^2 numbers."""


def audit_policy(
    experiment: Experiment,
    prepared: Prepared,
    estimators: Mapping[str, Estimator],
    batches: int,
    reference_batches: int = 0,
    *,
    names: Mapping[str, str] | None = None,
    console: Console | None = None,
) -> list[dict[str, Any]]:
    """A row for each estimator, from `batches` batches of the experiment's size; no update is made.

    The true gradient's stand-in is rloo (reinforce with one response a prompt) with the plain policy gradient, summed
    over tokens, and the divergence where it has no bias: its mean over the other batches and `reference_batches` more.
    Where the combination compares responses, its rewards are the weighted sums all the same.
    Estimators that carry something from one iteration to the next start anew on each batch.
    """
    if batches < 2:
        raise UserError(f"audit.batches={batches}: noise shows between batches; give at least 2")
    group = experiment.rollout.responses_per_prompt
    for name, estimator in estimators.items():
        if group < estimator.min_group:
            raise UserError(
                f"rollout.responses_per_prompt={group}: {name} compares the responses to one prompt and needs at least"
                f" {estimator.min_group}"
            )
    chosen = names or {
        group: type(getattr(experiment, group)).__name__ for group in ("objective", "aggregation", "kl", "mismatch")
    }
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    experiment, notes = experiment.on_this_machine(prepared.policy)
    engine = experiment.rollout.build(prepared.policy)
    for note in (*notes, *([engine.note] if engine.note else [])):
        (console or Console()).print(f"note: {note}", highlight=False)
    trainer = experiment.trainer.build(1, None, [], [], [])
    policy = prepared.policy.to(trainer.strategy.root_device)
    if experiment.warm_start.steps:
        limit = experiment.rollout.max_prompt_tokens
        warm_start(policy, experiment.task, experiment.warm_start, experiment.seed, limit, lambda loss: None)
    with (
        prepared.reward_model(experiment) as reward_model,
        engine,
        Progress(*columns, TimeRemainingColumn(), console=console, transient=True) as progress,
        trainer.precision_plugin.forward_context(),
        torch.no_grad(),
    ):
        reward_model.to(str(trainer.strategy.root_device))
        rollouts = Rollouts(experiment, engine, prepared, reward_model, estimators)
        task = progress.add_task("batches", total=batches + reference_batches)
        unbiased, own, tokens = [], {name: [] for name in estimators}, dict.fromkeys(estimators, 0)  # type: ignore[var-annotated]
        for number in range(1, batches + reference_batches + 1):
            batch = rollouts.draw(number, for_all=number <= batches)
            unbiased.append(batch.unbiased_D)
            for name, (gradient_D, generated) in batch.estimates.items():
                own[name].append(gradient_D)
                tokens[name] += generated
            progress.advance(task)
    responses = experiment.rollout.prompts * group
    measured = {
        name: Measured(torch.stack(own[name]), torch.stack(unbiased), tokens[name] / batches, responses)
        for name in estimators
    }
    return rows_of(measured, chosen, experiment.seed)


@dataclass(frozen=True, eq=False)
class Batch:
    """One batch's gradient by each estimator, with the tokens that it took, and by the unbiased stand-in."""

    unbiased_D: Tensor
    estimates: dict[str, tuple[Tensor, int]]


class Rollouts:
    """Draws batches of rollouts and what every estimator makes of them."""

    def __init__(
        self,
        experiment: Experiment,
        engine: Engine,
        prepared: Prepared,
        reward_model: RewardModel,
        estimators: Mapping[str, Estimator],
    ) -> None:
        policy = prepared.policy
        critic = None
        if any(estimator.needs_critic for estimator in estimators.values()):
            critic = experiment.critic.build(prepared.critic_source)
            critic = critic if critic is None else critic.to(policy.device)
        self.collector = collector_of(experiment, engine, prepared, reward_model, critic, no_step)
        self.methods = {name: self._method(estimator) for name, estimator in estimators.items()}
        self.unbiased = dataclasses.replace(
            self._method(RLOO() if experiment.rollout.responses_per_prompt > 1 else Reinforce()),
            objective=PolicyGradient(),
            aggregation=SequenceSum(),
            kl=next(iter(experiment.kl.without().values()), experiment.kl),
        )
        self.projections = Projections.random(policy, SKETCH, SKETCH, experiment.seed)

    def _method(self, estimator: Estimator) -> Method:
        return dataclasses.replace(self.collector.method, estimator=estimator)

    def draw(self, number: int, *, for_all: bool) -> Batch:
        """Batch 1, 2, ...: the rollouts of that iteration by the policy as it is; `for_all` estimators, or for none."""
        c = self.collector
        prefixes = c.stream.draw(number, c.rollout)
        continues = for_all and any(method.estimator.continues for method in self.methods.values())
        rollout = c.engine.generate(prefixes, c.rollout.sampling, retain=continues)
        scored = score(rollout, c.stream.prompts.examples, c.policy, c.reward_model, 1)
        trajectories = c.with_lots(scored.trajectories, number)
        asked = {name: m.estimator.requests(trajectories) for name, m in self.methods.items()} if for_all else {}
        trajectories = c.passes.with_logprobs(trajectories, old=False, values=True)
        sketches, trajectories = sketched(
            c.policy,
            trajectories,
            c.passes.temperature,
            self.projections,
            c.update.responses_per_microbatch,
            distribution=any(requests.distribution for requests in asked.values()),
        )
        if any(requests.score_norms for requests in asked.values()):
            trajectories = c.passes.with_score_norms(trajectories)

        def gradient(method: Method, answers: Answers, rewarded: Trajectories = trajectories) -> Tensor:
            state = method.initial_state()
            weighed = method.weigh(rewarded, dataclasses.replace(answers, state=state["estimator"]), state)
            return group_gradients(method, weighed, sketches, c.rollout.max_response_tokens, state).sum(0)

        answering = c.answering
        greedy = answering.greedy(prefixes, number) if any(r.greedy for r in asked.values()) else None
        estimates = {}
        for name, requests in asked.items():
            answers, more = _answers(answering, trajectories, requests, greedy, number)
            generated = int(rollout.action_mask_BT.sum()) + more
            estimates[name] = (gradient(self.methods[name], answers), generated)
        c.engine.release()
        return Batch(gradient(self.unbiased, Answers(), trajectories.replace(rewards_B=self._sums(scored))), estimates)

    def _sums(self, scored: Scored) -> Tensor:
        """The rewards as they would be if no response were compared with others."""
        model, trajectories = self.collector.reward_model, scored.trajectories
        if not isinstance(model, RewardModel) or model.combination.min_group == 1:
            assert trajectories.rewards_B is not None
            return trajectories.rewards_B
        alone = WeightedSum(gates=model.combination.gates, schedules=model.combination.schedules)
        values = {name: values_B.tolist() for name, values_B in trajectories.reward_terms_B.items()}
        weights = {name: term.weight for name, term in model.terms.items()}
        return torch.tensor(alone.rewards(values, weights, scored.samples, 1)).nan_to_num()


def _answers(
    answering: Answering, trajectories: Trajectories, requests: Requests, greedy: Trajectories | None, number: int
) -> tuple[Answers, int]:
    """What an estimator asked for, and the tokens that it took."""
    state = answering.method.initial_state()
    answers, tokens = Answers(), 0
    if requests.greedy:
        assert greedy is not None
        answered = answering.greedy_rewards(trajectories, greedy, 1, state)
        answers = dataclasses.replace(answers, greedy_rewards_B=answered.rewards_B, greedy_scored_B=answered.scored_B)
        tokens += answered.generated_tokens
    if requests.continuations is not None:
        continued = answering.continued(trajectories, requests.continuations, number, state)
        answers = dataclasses.replace(answers, continued_values_K=continued.values_K)
        tokens += continued.generated_tokens
    return answers, tokens
