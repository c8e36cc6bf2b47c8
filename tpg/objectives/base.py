"""What an objective is."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from torch import Tensor

from tpg.component import component
from tpg.trajectories import Trajectories


@dataclass(frozen=True, eq=False)
class TokenLosses:
    """A loss for every response token, with what is worth watching about it."""

    losses_BT: Tensor
    watched_BT: Mapping[str, Tensor] = field(default_factory=dict)
    """Detached per-token quantities by metric name; the trainer reports their mean over the iteration's tokens."""


@component
class Objective(ABC):
    """Log-probabilities and weights to token losses, once a minibatch."""

    off_policy: ClassVar[bool]
    """Whether it corrects for updates that were made since the rollout."""
    needs_groups: ClassVar[bool] = False
    """Whether it compares responses to one prompt, which must then lie in the same micro-batch."""
    response_level: ClassVar[bool] = False
    """Whether it needs one weight for the whole response."""

    def without(self) -> "dict[str, Objective]":
        """This objective less one ingredient that may bias it, by the ingredient's name; the audit blames by these."""
        return {}

    @abstractmethod
    def __call__(self, logprobs_BT: Tensor, trajectories: Trajectories) -> TokenLosses:
        """The token losses; only tokens of `trajectories.action_mask_BT` need be meaningful.

        `logprobs_BT` carries the gradient; `trajectories` holds weights and, where the policy has moved since the
        rollout, `old_logprobs_BT`.
        """


def old_logprobs(logprobs_BT: Tensor, trajectories: Trajectories) -> Tensor:
    """The log-probabilities before the update; the current ones, detached, while the policy has not moved."""
    old_BT = trajectories.old_logprobs_BT
    return (logprobs_BT if old_BT is None else old_BT).detach()


def weights(trajectories: Trajectories) -> Tensor:
    """The estimator's weights, without gradient; 0 where the policy chose nothing."""
    assert trajectories.weights_BT is not None, "run the estimator first"
    return trajectories.weights_BT.detach().masked_fill(~trajectories.action_mask_BT, 0.0)
