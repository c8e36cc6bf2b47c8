"""Where, if anywhere, the divergence from the reference policy enters.

Per token, `logratio = log pi - log pi_ref`. In the reward it is exact (k1 summed over the response); in the loss it is
the gradient of a nearby quantity. k1 in the loss has zero expected gradient, and k2 or k3 in the reward point
elsewhere: there is no option for them. (arXiv 2506.02553 for rewards, 2402.03300 for k3 in the loss.)
"""

from typing import ClassVar, Literal

from pydantic import Field, field_validator
from torch import Tensor

from tpg.component import component
from tpg.numerics import k2, k3, masked_sum


@component
class KL:
    """No divergence term."""

    needs_reference: ClassVar[bool] = False
    in_loss: ClassVar[bool] = False

    def shaped_rewards(self, rewards_B: Tensor, logratio_BT: Tensor, mask_BT: Tensor) -> Tensor:
        """The rewards that the estimator sees, (B,)."""
        return rewards_B

    def token_losses(self, logratio_BT: Tensor) -> Tensor | None:
        """What is added to each token's loss, (B, T), or None; `logratio_BT` carries the policy's gradient."""
        return None


@component
class NoKL(KL):
    """No divergence term; no reference policy is loaded."""


@component
class KLInReward(KL):
    """`R - coefficient * sum_t (log pi - log pi_ref)`: the exact gradient of the penalised objective."""

    needs_reference: ClassVar[bool] = True

    coefficient: float = Field(default=0.05, ge=0)

    def shaped_rewards(self, rewards_B: Tensor, logratio_BT: Tensor, mask_BT: Tensor) -> Tensor:
        """The penalised rewards."""
        return rewards_B - self.coefficient * masked_sum(logratio_BT, mask_BT)


@component
class KLInLoss(KL):
    """`coefficient * k(logratio)` added to every token's loss, as GRPO does with k3."""

    needs_reference: ClassVar[bool] = True
    in_loss: ClassVar[bool] = True

    coefficient: float = Field(default=0.04, ge=0)
    form: Literal["k1", "k2", "k3"] = "k3"

    @field_validator("form")
    @classmethod
    def _has_a_gradient(cls, form: str) -> str:
        if form == "k1":
            raise ValueError("k1 in the loss has zero gradient in expectation; use kl=k1_in_reward, or form=k2 or k3")
        return form

    def token_losses(self, logratio_BT: Tensor) -> Tensor:
        """The penalty of each token."""
        return self.coefficient * (k2 if self.form == "k2" else k3)(logratio_BT)
