"""What estimators share that value prefixes by continuing them."""

from abc import abstractmethod
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from tpg.component import component
from tpg.estimators.base import Answers, Continuations, Estimator, Requests
from tpg.trajectories import Trajectories


@component
class PrefixValueEstimator(Estimator):
    """An estimator that reads values of prefixes, each the mean reward of fresh continuations of it.

    The reward of a response is the value of its end and of nothing else: counted in with the n continuations of its own
    prefix, it would shrink the gradient by n/(n+1).
    """

    continues: ClassVar[bool] = True

    continuations: int = Field(default=4, ge=1)
    """Of each prefix."""

    @abstractmethod
    def asked(self, trajectories: Trajectories) -> Tensor:
        """Which prefixes are valued: those that end before these tokens, (B, T) bool."""

    @abstractmethod
    def differences(self, trajectories: Trajectories, values_BN: Tensor) -> Tensor:
        """The weight of every token, (B, T), from the values before each of the T tokens and, last, the reward.

        Values that were not asked for read 0. What is not kept or no action may hold any finite number.
        """

    def requests(self, trajectories: Trajectories) -> Requests:
        """Continuations of the prefixes of whatever is scored."""
        parent_K, position_K = self._asked_if_scored(trajectories).nonzero(as_tuple=True)
        return Requests(continuations=Continuations(parent_K, position_K, self.continuations))

    def kept(self, trajectories: Trajectories, answers: Answers) -> Tensor:
        """Scored, and so is at least one continuation of each of its prefixes."""
        return super().kept(trajectories, answers) & ~self._values(trajectories, answers).isnan().any(-1)

    def weights(self, trajectories: Trajectories, answers: Answers) -> Tensor:
        """Differences between the values of prefixes, the last one's being the reward."""
        assert trajectories.rewards_B is not None
        kept_B = self.kept(trajectories, answers)
        rewards_B = torch.where(kept_B, trajectories.rewards_B, 0.0).detach()
        values_BN = torch.cat([self._values(trajectories, answers).nan_to_num(), rewards_B[:, None]], dim=-1)
        counts_BT = trajectories.action_mask_BT & kept_B[:, None]
        return torch.where(counts_BT, self.differences(trajectories, values_BN), 0.0)

    def _asked_if_scored(self, trajectories: Trajectories) -> Tensor:
        assert trajectories.scored_B is not None, "score the trajectories first"
        useful_B = trajectories.scored_B & trajectories.action_mask_BT.any(-1)
        return self.asked(trajectories) & useful_B[:, None]

    def _values(self, trajectories: Trajectories, answers: Answers) -> Tensor:
        """The value before each token, (B, T): NaN where no continuation was scored, 0 where none was asked for."""
        assert trajectories.rewards_B is not None
        asked_BT = self._asked_if_scored(trajectories)
        values_BT = torch.zeros(asked_BT.shape, dtype=trajectories.rewards_B.dtype, device=asked_BT.device)
        if asked_BT.any():
            assert answers.continued_values_K is not None, "continue the prefixes first"
            values_BT[asked_BT] = answers.continued_values_K.to(values_BT.dtype).detach()
        return values_BT


def at_or_before(marked_BT: Tensor) -> Tensor:
    """The column of the last marked token up to and including each token, (B, T); -1 where there is none."""
    columns_T = torch.arange(marked_BT.shape[1], device=marked_BT.device)
    return torch.where(marked_BT, columns_T, -1).cummax(-1).values


def at_or_after(marked_BT: Tensor) -> Tensor:
    """The column of the first marked token from each token on, (B, T); T where there is none."""
    columns_T = torch.arange(marked_BT.shape[1], device=marked_BT.device)
    return torch.where(marked_BT, columns_T, marked_BT.shape[1]).flip(-1).cummin(-1).values.flip(-1)


def after(marked_BT: Tensor) -> Tensor:
    """The column of the first marked token after each token, (B, T); T where there is none."""
    return torch.nn.functional.pad(at_or_after(marked_BT)[:, 1:], (0, 1), value=marked_BT.shape[1])
