"""RL-ZVP: groups of equal rewards teach too, through the policy's entropy."""

import dataclasses
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from tpg.component import component
from tpg.estimators.base import Answers, Estimator, GroupedRewards, Requests
from tpg.estimators.group import GRPO
from tpg.trajectories import Trajectories


@component
class RLZVP(GRPO):
    """GRPO, but in a group of equal rewards a push of every token by its entropy. (arXiv 2509.21880.)

    With H the entropy over the vocabulary, nats: where the rewards are above 0, token t gets `alpha H_t`; where they
    are not, `-alpha (max_k H_k - H_t)` over the response's own tokens. Biased twice: by GRPO's division, and by the
    push, which is the gradient of no expected reward.
    """

    alpha: float = Field(default=0.1, ge=0)

    response_level: ClassVar[bool] = False

    def requests(self, trajectories: Trajectories) -> Requests:
        """The entropy at every token."""
        return Requests(distribution=True)

    def without(self) -> dict[str, Estimator]:
        """Without the push; without the division."""
        less: dict[str, Estimator] = {"push in zero-variance groups": GRPO(epsilon=self.epsilon, std=self.std)}
        return less if self.std == "none" else less | {"std normalisation": dataclasses.replace(self, std="none")}

    def weights(self, trajectories: Trajectories, answers: Answers) -> Tensor:
        """GRPO's weights, and the push where they are 0 for the whole group."""
        weights_BT = super().weights(trajectories, answers)
        kept_B, rewards_B = self.kept(trajectories, answers), trajectories.rewards_B
        assert rewards_B is not None
        assert trajectories.entropy_BT is not None, "ask for the distribution"
        rewards_B = torch.where(kept_B, rewards_B, 0.0).detach()
        grouped = GroupedRewards(rewards_B, kept_B, trajectories.group_B)
        equal_B = kept_B & (grouped.sum((grouped.shifted_B != 0).long()) == 0)
        entropy_BT = trajectories.entropy_BT.detach().to(weights_BT.dtype)
        largest_B1 = entropy_BT.masked_fill(~trajectories.action_mask_BT, -torch.inf).amax(-1, keepdim=True)
        push_BT = self.alpha * torch.where(rewards_B[:, None] > 0, entropy_BT, entropy_BT - largest_B1)
        return torch.where(equal_B[:, None] & trajectories.action_mask_BT, push_BT, weights_BT)
