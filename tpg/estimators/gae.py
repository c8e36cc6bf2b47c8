"""Generalised advantage estimation: a critic values every prefix."""

from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from tpg.component import component
from tpg.estimators.base import Answers, Estimator
from tpg.trajectories import Trajectories


@component
class GAE(Estimator):
    """`A_t = sum_l (gamma lam)^l delta_{t+l}`, `delta_t = r_t + gamma V_{t+1} - V_t`. (arXiv 1506.02438.)

    The response-level reward falls on the last token that the policy chose, and time counts such tokens alone.
    With lam = gamma = 1 the sum telescopes to `R - V(prefix)`, a baseline that knows the prefix only: exact for any
    critic. With lam < 1 the critic's values stand for the reward, exact only where they are.
    """

    lam: float = Field(default=1.0, ge=0, le=1)
    gamma: float = Field(default=1.0, gt=0, le=1)

    needs_critic: ClassVar[bool] = True

    def without(self) -> dict[str, Estimator]:
        """Without trust in the critic's values; without the discount, which the gradient of the reward has none of."""
        less: dict[str, Estimator] = {}
        if self.lam < 1:
            less["lambda below 1"] = GAE(gamma=self.gamma)
        if self.gamma < 1:
            less["discounting"] = GAE(lam=self.lam)
        return less

    def returns(self, trajectories: Trajectories) -> Tensor:
        """The reward, discounted by the chosen tokens that follow."""
        following_BT = trajectories.action_mask_BT.flip(-1).cumsum(-1).flip(-1) - 1
        return super().returns(trajectories) * self.gamma ** following_BT.clamp(min=0)

    def weights(self, trajectories: Trajectories, answers: Answers) -> Tensor:
        """The advantage of every token, from the last to the first."""
        assert trajectories.values_BT is not None, "gae needs a critic's values"
        assert trajectories.rewards_B is not None
        kept_B = self.kept(trajectories, answers)
        chosen_BT = trajectories.action_mask_BT & kept_B[:, None]
        # What lies beyond a token: the reward after the last one, the next one's value and advantage before it.
        reward_B = torch.where(kept_B, trajectories.rewards_B, 0.0).detach()
        values_BT = torch.where(chosen_BT, trajectories.values_BT, 0.0).to(reward_B.dtype).detach()
        return_B, advantage_B = reward_B, torch.zeros_like(reward_B)
        weights_BT = torch.zeros_like(values_BT)
        for t in reversed(range(values_BT.shape[1])):
            chosen_B, value_B = chosen_BT[:, t], values_BT[:, t]
            here_B = return_B - value_B + self.gamma * self.lam * advantage_B
            weights_BT[:, t] = torch.where(chosen_B, here_B, 0.0)
            advantage_B = torch.where(chosen_B, here_B, advantage_B)
            return_B = torch.where(chosen_B, self.gamma * value_B, return_B)
        return weights_BT
