"""TRePO: at a few random tokens, what each did to the expected reward."""

import dataclasses
import itertools
import math
from abc import abstractmethod

import torch
from pydantic import Field
from torch import Tensor

from tpg.component import component
from tpg.estimators.base import Estimator
from tpg.estimators.prefix_values import PrefixValueEstimator, after, at_or_after, at_or_before
from tpg.trajectories import Trajectories


@component
class TRePO(PrefixValueEstimator):
    """`V(with the token) - V(without it)` at m random tokens of a response; others differ in the rest. (2506.02553.)

    The tokens are drawn without replacement from those that the policy chose. The value with the last token is the
    reward. It costs up to 2 m `continuations` responses; a prefix that ends one token and starts another is asked once.
    """

    positions: int = Field(default=8, ge=1)
    """Tokens drawn of each response, m; all of a shorter one."""

    @property
    def draws(self) -> bool:
        """By lot, always."""
        return True

    def in_miniature(self, horizon: int) -> "TRePO":
        """With fewer positions than tokens."""
        return dataclasses.replace(self, positions=min(self.positions, max(1, horizon - 1)))

    def lots(self, width: int) -> list[tuple[float, Tensor]]:
        """Every order of the tokens, width! of them; each order of a shorter response's tokens is met as often."""
        chance = 1 / math.factorial(width)
        numbers = [(rank + 0.5) / width for rank in range(width)]
        return [(chance, torch.tensor(order, dtype=torch.float64)) for order in itertools.permutations(numbers)]

    @abstractmethod
    def spread(self, weights_BT: Tensor, drawn_BT: Tensor, action_mask_BT: Tensor) -> Tensor:
        """The weight of every token, (B, T), from those of the drawn ones, zero elsewhere."""

    def asked(self, trajectories: Trajectories) -> Tensor:
        """What precedes each drawn token, and what precedes the action after it."""
        drawn_BT = self.drawn(trajectories)
        later_BT = drawn_BT.new_zeros(len(drawn_BT), drawn_BT.shape[1] + 1, dtype=torch.long)
        later_BT.scatter_add_(1, after(trajectories.action_mask_BT), drawn_BT.long())
        return drawn_BT | (later_BT[:, :-1] > 0)

    def drawn(self, trajectories: Trajectories) -> Tensor:
        """The tokens with the m smallest numbers among those that the policy chose, (B, T) bool."""
        assert trajectories.uniforms_BT is not None, "trepo needs a number for every token"
        uniforms_BT = torch.where(trajectories.action_mask_BT, trajectories.uniforms_BT, torch.inf)
        ranks_BT = uniforms_BT.argsort(dim=-1, stable=True).argsort(dim=-1)
        return trajectories.action_mask_BT & (ranks_BT < self.positions)

    def differences(self, trajectories: Trajectories, values_BN: Tensor) -> Tensor:
        """`V(W_t) - V(W_{t-1})` at the drawn tokens, and what comes of it elsewhere."""
        drawn_BT, action_mask_BT = self.drawn(trajectories), trajectories.action_mask_BT
        gains_BT = torch.gather(values_BN, 1, after(action_mask_BT)) - values_BN[:, :-1]
        return self.spread(torch.where(drawn_BT, gains_BT, 0.0), drawn_BT, action_mask_BT)


@component
class TRePOInverseProbability(TRePO):
    """TRePO with each drawn token's weight divided by the chance that it was drawn, and zero elsewhere. Unbiased.

    A response of L tokens draws each with chance min(1, m/L). L is known only at its end, and still nothing is biased:
    given the response, the mean over the lot is the weight of every token as if all had been drawn.
    """

    def spread(self, weights_BT: Tensor, drawn_BT: Tensor, action_mask_BT: Tensor) -> Tensor:
        """Drawn weights over their chance of being drawn."""
        length_B1 = action_mask_BT.sum(-1, keepdim=True).to(weights_BT.dtype)
        return weights_BT * (length_B1 / self.positions).clamp(min=1)


@component
class TRePOInterpolate(TRePO):
    """TRePO with weights interpolated linearly between the drawn tokens, as published; constant beyond them. Biased.

    The interpolated weights have no part in the expected gradient and add noise. Responses of one length T scale it
    by m/T; of several lengths the shorter ones count for more.
    """

    def without(self) -> dict[str, Estimator]:
        """With drawn tokens alone."""
        exact = TRePOInverseProbability(positions=self.positions, continuations=self.continuations)
        return {"interpolation": exact}

    def spread(self, weights_BT: Tensor, drawn_BT: Tensor, action_mask_BT: Tensor) -> Tensor:
        """On the line between the drawn weights on either side, with distance in tokens that the policy chose."""
        before_BT, after_BT = at_or_before(drawn_BT), at_or_after(drawn_BT)
        width = weights_BT.shape[1]
        last_B1 = before_BT[:, -1:].clamp(min=0)
        first_B1 = after_BT[:, :1].clamp(max=width - 1)
        before_BT = torch.where(before_BT < 0, first_B1, before_BT)
        after_BT = torch.where(after_BT == width, last_B1, after_BT)
        place_BT = action_mask_BT.cumsum(-1)
        start_BT = torch.gather(place_BT, 1, before_BT)
        distance_BT = torch.gather(place_BT, 1, after_BT) - start_BT
        way_BT = (place_BT - start_BT).to(weights_BT.dtype) / distance_BT.clamp(min=1)
        left_BT, right_BT = torch.gather(weights_BT, 1, before_BT), torch.gather(weights_BT, 1, after_BT)
        return left_BT + way_BT * (right_BT - left_BT)
