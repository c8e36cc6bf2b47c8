"""Where, if anywhere, the divergence from the reference policy enters.

Per token, `logratio = log pi - log pi_ref`. In the reward it is exact, as the response's sum or as each token's
reward-to-go. In the loss, k2 of the whole response is exact too; penalties of single tokens have the gradient of a
nearby quantity. k1 in the loss has zero expected gradient, and k2 or k3 in the reward point elsewhere: there is no
option for them. (arXiv 2506.02553 for rewards, 2402.03300 for k3 in the loss.)
"""

from abc import abstractmethod
from collections.abc import Mapping
from typing import ClassVar, Literal

from pydantic import Field, ValidationInfo, field_validator
from torch import Tensor

from tpg.component import component
from tpg.numerics import k2, k3, masked_sum
from tpg.objectives.base import old_logprobs
from tpg.trajectories import Trajectories

State = Mapping[str, float]


@component
class KL:
    """No divergence term."""

    needs_reference: ClassVar[bool] = False
    in_loss: ClassVar[bool] = False

    def initial_state(self) -> dict[str, float]:
        """What is carried into the first iteration."""
        return {}

    def next_state(self, state: State, kl: float, responses: int) -> dict[str, float]:
        """What is carried into the next, after `responses` whose mean divergence was `kl` nats."""
        return dict(state)

    def without(self) -> "dict[str, KL]":
        """This term where it has no bias, by the name of the ingredient that has; the audit blames by these."""
        return {}

    def shaped_rewards(self, rewards_B: Tensor, logratio_BT: Tensor, mask_BT: Tensor, state: State) -> Tensor:
        """The rewards that the estimator sees, (B,)."""
        return rewards_B

    def shaped_weights(self, weights_BT: Tensor, logratio_BT: Tensor, mask_BT: Tensor, state: State) -> Tensor:
        """What becomes of the estimator's weights, (B, T)."""
        return weights_BT

    def token_losses(self, logprobs_BT: Tensor, trajectories: Trajectories, state: State) -> Tensor | None:
        """What is added to each token's loss, (B, T), or None; `logprobs_BT` carries the policy's gradient."""
        return None


@component
class NoKL(KL):
    """No divergence term; no reference policy is loaded."""


@component
class Penalty(KL):
    """`coefficient` times a divergence, held or steered towards a target.

    With `target` the coefficient is multiplied after each iteration by
    `1 + clip(kl / target - 1, -0.2, 0.2) * min(1, responses / horizon)`. (Ziegler et al., arXiv 1909.08593.)
    """

    needs_reference: ClassVar[bool] = True

    coefficient: float = Field(default=0.05, ge=0)
    target: float | None = Field(default=None, gt=0)
    """Nats a response; None: the coefficient stays."""
    horizon: int = Field(default=10_000, ge=1)
    """Responses over which the coefficient could grow by a factor of about 1.2."""

    @field_validator("target")
    @classmethod
    def _can_be_approached(cls, target: float | None, info: ValidationInfo) -> float | None:
        if target is not None and info.data.get("coefficient") == 0:
            raise ValueError("a coefficient of 0 never moves towards a target; start above 0")
        return target

    def initial_state(self) -> dict[str, float]:
        """The coefficient, if it moves."""
        return {} if self.target is None else {"coefficient": self.coefficient}

    def next_state(self, state: State, kl: float, responses: int) -> dict[str, float]:
        """The coefficient of the next iteration."""
        if self.target is None:
            return {}
        error = min(0.2, max(-0.2, kl / self.target - 1))
        return {"coefficient": state["coefficient"] * (1 + error * min(1.0, responses / self.horizon))}

    def current(self, state: State) -> float:
        """The coefficient in force."""
        return state.get("coefficient", self.coefficient)


@component
class KLInReward(Penalty):
    """`R - coefficient * sum_t (log pi - log pi_ref)`: the exact gradient of the penalised objective."""

    def shaped_rewards(self, rewards_B: Tensor, logratio_BT: Tensor, mask_BT: Tensor, state: State) -> Tensor:
        """The penalised rewards."""
        return rewards_B - self.current(state) * masked_sum(logratio_BT, mask_BT)


@component
class KLToGo(Penalty):
    """Each token's weight less `coefficient` times the log-ratio from it to the end: exact, and mostly less noisy.

    A token's penalty so far does not depend on the token: only what follows is charged to it.
    """

    def shaped_weights(self, weights_BT: Tensor, logratio_BT: Tensor, mask_BT: Tensor, state: State) -> Tensor:
        """The penalised weights."""
        masked_BT = logratio_BT.masked_fill(~mask_BT, 0.0).detach()
        to_go_BT = masked_BT.flip(-1).cumsum(-1).flip(-1)
        return weights_BT - self.current(state) * to_go_BT * mask_BT


@component
class LossPenalty(Penalty):
    """A penalty that is differentiated."""

    in_loss: ClassVar[bool] = True

    coefficient: float = Field(default=0.04, ge=0)

    def token_losses(self, logprobs_BT: Tensor, trajectories: Trajectories, state: State) -> Tensor:
        """The penalty of each token."""
        assert trajectories.ref_logprobs_BT is not None, "a penalty needs the reference's log-probabilities"
        logratio_BT = (logprobs_BT - trajectories.ref_logprobs_BT).masked_fill(~trajectories.action_mask_BT, 0.0)
        return self.current(state) * self.penalties(logratio_BT, logprobs_BT, trajectories)

    @abstractmethod
    def penalties(self, logratio_BT: Tensor, logprobs_BT: Tensor, trajectories: Trajectories) -> Tensor:
        """The divergence as a loss of each token; `logratio_BT` is 0 where the policy chose nothing."""


@component
class KLInLoss(LossPenalty):
    """`coefficient * k(logratio)` added to every token's loss, as GRPO does with k3.

    `ratio_k3` weighs k3 by the probability ratio to the policy before the update, which makes its gradient that of each
    token's divergence. (DeepSeek-V3.2, arXiv 2512.02556.)
    """

    form: Literal["k1", "k2", "k3", "ratio_k3"] = "k3"

    @field_validator("form")
    @classmethod
    def _has_a_gradient(cls, form: str) -> str:
        if form == "k1":
            raise ValueError("k1 in the loss has zero gradient in expectation; use kl=k1_in_reward, or form=k2 or k3")
        return form

    def without(self) -> dict[str, KL]:
        """In the reward."""
        moved = KLInReward(coefficient=self.coefficient, target=self.target, horizon=self.horizon)
        return {"KL placement": moved}

    def penalties(self, logratio_BT: Tensor, logprobs_BT: Tensor, trajectories: Trajectories) -> Tensor:
        """k2, k3 or `ratio * k3` of each token."""
        if self.form == "k2":
            return k2(logratio_BT)
        if self.form == "k3":
            return k3(logratio_BT)
        moved_BT = logprobs_BT - old_logprobs(logprobs_BT, trajectories)
        return moved_BT.masked_fill(~trajectories.action_mask_BT, 0.0).exp() * k3(logratio_BT)


@component
class SequenceKLInLoss(LossPenalty):
    """`coefficient * (sum_t logratio)^2 / 2`, k2 of the whole response, in the loss: the exact gradient of the KL.

    It counts once a response and is spread evenly over its tokens.
    """

    def penalties(self, logratio_BT: Tensor, logprobs_BT: Tensor, trajectories: Trajectories) -> Tensor:
        """An equal share of the response's k2."""
        mask_BT = trajectories.action_mask_BT
        return k2(logratio_BT.sum(-1, keepdim=True)) / mask_BT.sum(-1, keepdim=True).clamp(min=1) * mask_BT
