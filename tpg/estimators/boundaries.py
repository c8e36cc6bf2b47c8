"""Where a response is cut into segments.

Whether a boundary lies at a position is decided from the tokens before it, or by lot. Nothing that lies ahead may
have a say: a boundary at a fraction of the realised length, or a limit on boundaries counted from the end, biases the
gradient.
"""

import itertools
from abc import ABC, abstractmethod
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from tpg.component import component
from tpg.trajectories import Trajectories


@component
class Boundaries(ABC):
    """Places within a response where a segment ends and the next begins."""

    draws: ClassVar[bool] = False
    """Whether it decides by lot, and reads `trajectories.uniforms_BT`."""

    @abstractmethod
    def at(self, trajectories: Trajectories) -> Tensor:
        """Whether a boundary lies before token t, (B, T) bool; never before the first, and only before actions."""

    def in_miniature(self, horizon: int) -> "Boundaries":
        """What stands for these where responses have at most `horizon` tokens out of a few."""
        return self

    def lots(self, width: int) -> list[tuple[float, Tensor]]:
        """Numbers (width,) for `uniforms_BT` that bring about every decision there is, each with its probability."""
        return [(1.0, torch.zeros(width, dtype=torch.float64))]


@component
class EveryTokens(Boundaries):
    """A boundary after every `tokens` tokens that the policy chose."""

    tokens: int = Field(ge=1)

    def in_miniature(self, horizon: int) -> Boundaries:
        """At most half a response apart."""
        return EveryTokens(tokens=min(self.tokens, max(1, horizon // 2)))

    def at(self, trajectories: Trajectories) -> Tensor:
        """Where a multiple of `tokens` was chosen before."""
        action_mask_BT = trajectories.action_mask_BT
        before_BT = action_mask_BT.cumsum(-1) - action_mask_BT.long()
        return action_mask_BT & (before_BT > 0) & (before_BT % self.tokens == 0)


@component
class Delimiter(Boundaries):
    """A boundary after every token of `token_ids`, such as a line break of the policy's tokenizer."""

    token_ids: list[int] = Field(min_length=1)

    def in_miniature(self, horizon: int) -> Boundaries:
        """After the first token of the vocabulary."""
        return Delimiter(token_ids=[0])

    def at(self, trajectories: Trajectories) -> Tensor:
        """Where the token before is a delimiter."""
        ids = torch.tensor(self.token_ids, device=trajectories.response_ids_BT.device)
        delimiter_BT = torch.isin(trajectories.response_ids_BT, ids) & trajectories.response_mask_BT
        return trajectories.action_mask_BT & delimiter_BT.roll(1, -1) & _not_first(delimiter_BT)


@component
class Coin(Boundaries):
    """A boundary wherever a coin of this `probability` says so, one toss for every position."""

    probability: float = Field(gt=0, le=1)

    draws: ClassVar[bool] = True

    def at(self, trajectories: Trajectories) -> Tensor:
        """Where the token's number is below the probability."""
        assert trajectories.uniforms_BT is not None, "coins need a number for every token"
        tossed_BT = trajectories.uniforms_BT < self.probability
        return trajectories.action_mask_BT & tossed_BT & _not_first(tossed_BT)

    def lots(self, width: int) -> list[tuple[float, Tensor]]:
        """Every outcome of the tosses after the first token: 2^(width-1), or one if the coin always says yes."""
        yes, no = (self.probability, self.probability / 2), (1 - self.probability, (1 + self.probability) / 2)
        sides = [yes, no] if self.probability < 1 else [yes]
        lots = []
        for tosses in itertools.product(sides, repeat=max(width - 1, 0)):
            chance = torch.tensor([chance for chance, _ in tosses], dtype=torch.float64).prod()
            lots.append((float(chance), torch.tensor([0.0, *(number for _, number in tosses)], dtype=torch.float64)))
        return lots


def _not_first(like_BT: Tensor) -> Tensor:
    return torch.arange(like_BT.shape[1], device=like_BT.device) > 0
