"""A method: estimator, objective, aggregation and penalties, composed.

The training loop and the audit both go through here, so that what is audited is what trains.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from pydantic import Field
from torch import Tensor

from tpg.aggregation import Aggregation, MinibatchSize
from tpg.component import component
from tpg.estimators.base import Answers, Estimator
from tpg.kl import KL
from tpg.mismatch import Mismatch
from tpg.numerics import TokenStatistics, group_sum, masked_sum
from tpg.objectives.base import Objective, old_logprobs
from tpg.trajectories import Trajectories

State = Mapping[str, Mapping[str, float]]
"""What is carried from one iteration to the next, by part: estimator, kl."""


@dataclass(frozen=True, eq=False)
class Weighed:
    """Trajectories that are ready for the update."""

    trajectories: Trajectories
    """With rewards as the tasks gave them, and weights."""
    kept_B: Tensor
    """Those that count."""
    needed_B: Tensor
    """Those of them whose loss has a gradient."""
    state: dict[str, dict[str, float]]
    """For the next iteration."""
    kl: float | None
    """Mean over responses of the summed log-ratio to the reference, nats; None without a reference."""


@dataclass(frozen=True, eq=False)
class Loss:
    """A micro-batch's share of the minibatch's loss, and what is worth watching about its tokens."""

    value: Tensor
    watched_BT: Mapping[str, Tensor]


@component
class Method:
    """What turns scored trajectories into a gradient."""

    estimator: Estimator
    objective: Objective
    aggregation: Aggregation
    kl: KL
    mismatch: Mismatch
    entropy_coefficient: float = Field(default=0.0, ge=0)
    """Of the bonus for the full-vocabulary entropy at every response token."""

    def initial_state(self) -> dict[str, dict[str, float]]:
        """What is carried into the first iteration."""
        return {"estimator": self.estimator.initial_state(), "kl": self.kl.initial_state()}

    @property
    def moves_rewards(self) -> bool:
        """Whether the divergence is charged before the update, from the log-probabilities of the rollout."""
        return self.kl.needs_reference and not self.kl.in_loss

    def rewards(self, trajectories: Trajectories, state: State) -> Tensor:
        """The rewards that the estimator sees, (B,): those of the task less what the divergence costs."""
        assert trajectories.rewards_B is not None, "score the trajectories first"
        if not self.moves_rewards:
            return trajectories.rewards_B
        return self.kl.shaped_rewards(
            trajectories.rewards_B, logratio(trajectories), trajectories.action_mask_BT, state["kl"]
        )

    def weigh(self, trajectories: Trajectories, answers: Answers, state: State) -> Weighed:
        """Scored trajectories, with all that was asked for, to weights."""
        shaped = trajectories.replace(rewards_B=self.rewards(trajectories, state))
        kept_B = self.estimator.kept(shaped, answers)
        weights_BT = self.estimator.weights(shaped, answers)
        mask_BT = trajectories.action_mask_BT
        kl = None
        next_kl = dict(state["kl"])
        if trajectories.ref_logprobs_BT is not None:
            logratio_BT = logratio(trajectories)
            charged_BT = self.kl.shaped_weights(weights_BT, logratio_BT, mask_BT, state["kl"])
            weights_BT = torch.where(kept_B[:, None], charged_BT, 0.0)
            kl = float(masked_sum(logratio_BT, mask_BT).mean())
            next_kl = self.kl.next_state(state["kl"], kl, len(trajectories))
        needed_B = kept_B if self.always_needed else kept_B & (weights_BT != 0).any(-1)
        if self.objective.needs_groups:
            needed_B = kept_B & (group_sum(needed_B.long(), trajectories.group_B) > 0)
        weighed = trajectories.replace(weights_BT=weights_BT)
        if self.estimator.needs_critic:
            weighed = weighed.replace(returns_BT=torch.where(kept_B[:, None], self.estimator.returns(shaped), 0.0))
        return Weighed(
            trajectories=weighed,
            kept_B=kept_B,
            needed_B=needed_B,
            state={"estimator": self.estimator.next_state(shaped, state["estimator"]), "kl": next_kl},
            kl=kl,
        )

    @property
    def always_needed(self) -> bool:
        """Whether responses of zero weight have a gradient too."""
        return self.kl.in_loss or self.entropy_coefficient > 0 or self.estimator.needs_critic

    def loss(self, statistics: TokenStatistics, trajectories: Trajectories, size: MinibatchSize, state: State) -> Loss:
        """The policy's statistics, with gradient, to one number."""
        token_losses = self.objective(statistics.logprobs, trajectories)
        losses_BT = token_losses.losses_BT
        penalties_BT = self.kl.token_losses(statistics.logprobs, trajectories, state["kl"])
        if penalties_BT is not None:
            losses_BT = losses_BT + penalties_BT
        if self.entropy_coefficient:
            assert statistics.entropy is not None
            losses_BT = losses_BT - self.entropy_coefficient * statistics.entropy
        # While the policy has not moved, these are the trainer's own before the update: no pass is needed for them.
        old_BT = old_logprobs(statistics.logprobs, trajectories)
        factors_BT = self.mismatch.factors(trajectories.replace(old_logprobs_BT=old_BT))
        if factors_BT is not None:
            losses_BT = losses_BT * factors_BT
        return Loss(self.aggregation(losses_BT, trajectories.action_mask_BT, size), token_losses.watched_BT)


def logratio(trajectories: Trajectories) -> Tensor:
    """`log pi - log pi_ref` of every token as it was generated, (B, T), nats."""
    old_BT = trajectories.old_logprobs_BT
    assert trajectories.ref_logprobs_BT is not None
    return (trajectories.rollout_logprobs_BT if old_BT is None else old_BT) - trajectories.ref_logprobs_BT
