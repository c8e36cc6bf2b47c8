"""What estimators share whose baseline is a weighted mean of the group's rewards."""

import dataclasses
from abc import abstractmethod
from typing import ClassVar

import torch
from torch import Tensor

from tpg.component import component
from tpg.estimators.base import Answers, Estimator, GroupedRewards
from tpg.trajectories import Trajectories


@component
class WeightedBaseline(Estimator):
    """`R_i - sum_j w_j R_j / sum_j w_j` over the response's group, and `R_i` where all those `w_j` are 0.

    With `leave_one_out` the sums leave out the response itself. That is unbiased for any `w`, since the baseline of
    a response is then a function of the others alone. With the response itself in the sums it is biased: the more a
    response weighs in its own baseline, the less of its reward is left.
    """

    min_group: ClassVar[int] = 2
    leave_one_out: bool = False

    def without(self) -> dict[str, Estimator]:
        """Without the response itself in its baseline."""
        return {} if self.leave_one_out else {"self-inclusion": dataclasses.replace(self, leave_one_out=True)}

    @abstractmethod
    def importance(self, trajectories: Trajectories) -> Tensor:
        """`w`, never negative: (B, 1), or (B, T) for a baseline of its own at every token."""

    def weights(self, trajectories: Trajectories, answers: Answers) -> Tensor:
        """The reward less the baseline on each of the response's tokens."""
        kept_B = self.kept(trajectories, answers)
        assert trajectories.rewards_B is not None
        rewards_B = torch.where(kept_B, trajectories.rewards_B, 0.0).detach()
        # In float64: the squared norms of a group can lie many orders of magnitude apart.
        shifted_B1 = GroupedRewards(rewards_B, kept_B, trajectories.group_B).shifted_B.double()[:, None]
        importance = torch.where(kept_B[:, None], self.importance(trajectories).detach().double(), 0.0)
        totals = self._group_totals(importance, trajectories.group_B)
        sums = self._group_totals(importance * shifted_B1, trajectories.group_B)
        advantages = torch.where(totals > 0, shifted_B1 - sums / totals, rewards_B.double()[:, None])
        counts_BT = kept_B[:, None] & trajectories.action_mask_BT
        return torch.where(counts_BT, advantages.to(rewards_B.dtype), 0.0)

    def _group_totals(self, values: Tensor, group_B: Tensor) -> Tensor:
        """Each row's group sum of `values`, (B, 1) or (B, T), less its own row with `leave_one_out`.

        The other rows are added up, not the own one taken off again, which would leave nothing but rounding where
        the own one is by far the largest.
        """
        if not len(values):
            return values
        order = torch.argsort(group_B, stable=True)
        sizes = torch.bincount(group_B)
        place_B = torch.empty_like(order)
        place_B[order] = torch.arange(len(order), device=order.device) - (sizes.cumsum(0) - sizes)[group_B[order]]
        grid = values.new_zeros(len(sizes), int(sizes.max()), values.shape[-1])
        grid[group_B, place_B] = values
        others = (_sums_before(grid) + _sums_before(grid.flip(1)).flip(1))[group_B, place_B]
        return others if self.leave_one_out else others + values


def _sums_before(grid: Tensor) -> Tensor:
    """For each place in a group the sum of the places before it; (groups, places, ...)."""
    return torch.cat([torch.zeros_like(grid[:, :1]), grid[:, :-1].cumsum(1)], dim=1)


def cumulative_score_norms(trajectories: Trajectories) -> Tensor:
    """The squared norm of the score function in the logits, summed from the first token to each token, (B, T).

    That of one token is `sum_v (1[v = o] - pi(v))^2 = 1 - 2 pi(o) + sum_v pi(v)^2`. Tokens that the policy did not
    choose add nothing, so that past its end a response keeps its last sum. In a tabular policy that visits no state
    twice it is the true squared norm of the prefix's score function.
    """
    old_BT, squares_BT = trajectories.old_logprobs_BT, trajectories.sum_squared_probs_BT
    assert squares_BT is not None, "ask for the distribution"
    logprobs_BT = (trajectories.rollout_logprobs_BT if old_BT is None else old_BT).detach().double()
    prob_BT = logprobs_BT.exp()
    # Apart, the two terms stay at or above 0 where the probability is 1 but for rounding.
    others_BT = (squares_BT.detach().double() - prob_BT.square()).clamp(min=0)
    norms_BT = torch.expm1(logprobs_BT).square() + others_BT
    return torch.where(trajectories.action_mask_BT, norms_BT, 0.0).cumsum(-1)
