"""Estimators put right from outside, to find what is wrong with one of which nothing is known but what it does.

Each repair wraps any estimator and undoes one mistake by its weights alone. Where that makes the gradient exact, or
clearly better, the mistake is named.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from tpg.component import component
from tpg.estimators.base import Answers, Estimator, GroupedRewards, Requests
from tpg.trajectories import Trajectories


@component
class Repaired(Estimator):
    """An estimator whose weights pass through something else."""

    inner: Estimator

    def __getattribute__(self, name: str) -> Any:
        # What the classes say of themselves is the inner estimator's to say.
        if name in ("min_group", "needs_critic", "draws"):
            return getattr(object.__getattribute__(self, "inner"), name)
        return object.__getattribute__(self, name)

    def requests(self, trajectories: Trajectories) -> Requests:
        """Those of the inner estimator."""
        return self.inner.requests(trajectories)

    def kept(self, trajectories: Trajectories, answers: Answers) -> Tensor:
        """Those of the inner estimator."""
        return self.inner.kept(trajectories, answers)

    def lots(self, width: int) -> list[tuple[float, Tensor]]:
        """Those of the inner estimator."""
        return self.inner.lots(width)

    def initial_state(self) -> dict[str, float]:
        """That of the inner estimator."""
        return self.inner.initial_state()

    def weights(self, trajectories: Trajectories, answers: Answers) -> Tensor:
        """The inner weights, unchanged."""
        return self.inner.weights(trajectories, answers)


@component
class TimesGroupStd(Repaired):
    """Undoes a division by the standard deviation of the group's rewards."""

    def weights(self, trajectories: Trajectories, answers: Answers) -> Tensor:
        """The inner weights times the deviation."""
        return self.inner.weights(trajectories, answers) * _deviation(_grouped(trajectories))[:, None]


@component
class TimesBatchStd(Repaired):
    """Undoes a division by the standard deviation of the batch's rewards; batches are told apart by their draw."""

    def weights(self, trajectories: Trajectories, answers: Answers) -> Tensor:
        """The inner weights times the deviation."""
        batch = GroupedRewards(
            _rewards(trajectories), torch.ones_like(trajectories.row_B, dtype=torch.bool), trajectories.draw_B
        )
        return self.inner.weights(trajectories, answers) * _deviation(batch)[:, None]


@component
class TimesLength(Repaired):
    """Undoes a division by the response's own length."""

    def weights(self, trajectories: Trajectories, answers: Answers) -> Tensor:
        """The inner weights times the tokens of the response."""
        return self.inner.weights(trajectories, answers) * trajectories.action_mask_BT.sum(-1, keepdim=True)


@component
class WithoutOwnReward(Repaired):
    """Takes a response's reward out of what is subtracted from it, by showing the mean of the others in its place."""

    def weights(self, trajectories: Trajectories, answers: Answers) -> Tensor:
        """`R_i` less the baseline that results when `R_i` is that mean."""
        rewards_B, grouped = _rewards(trajectories), _grouped(trajectories)
        others_B = (grouped.sum(rewards_B) - rewards_B) / (grouped.size_B - 1).clamp(min=1)
        weights_BT = torch.zeros_like(trajectories.action_mask_BT, dtype=rewards_B.dtype)
        for index in trajectories.response_index_B.unique():
            own_B = trajectories.response_index_B == index
            shown = trajectories.replace(rewards_B=torch.where(own_B, others_B, rewards_B))
            baseline_BT = others_B[:, None] - self.inner.weights(shown, answers)
            weights_BT = torch.where(own_B[:, None], rewards_B[:, None] - baseline_BT, weights_BT)
        return weights_BT * trajectories.action_mask_BT


@component
class LastWeight(Repaired):
    """Undoes a discount: every token gets the weight of the last."""

    def weights(self, trajectories: Trajectories, answers: Answers) -> Tensor:
        """The inner weight of the last token."""
        last_B1 = (trajectories.action_mask_BT.sum(-1, keepdim=True) - 1).clamp(min=0)
        return self.inner.weights(trajectories, answers).gather(-1, last_B1) * trajectories.action_mask_BT


@component
class SilentWhenEqual(Repaired):
    """Takes away what pushes a group whose rewards are all equal."""

    def weights(self, trajectories: Trajectories, answers: Answers) -> Tensor:
        """The inner weights where the rewards differ."""
        return self.inner.weights(trajectories, answers) * (_deviation(_grouped(trajectories)) > 0)[:, None]


REPAIRS: dict[str, Callable[..., Repaired]] = {
    "std normalisation": TimesGroupStd,
    "batch std normalisation": TimesBatchStd,
    "length normalisation": TimesLength,
    "discounting": LastWeight,
    "a push where all rewards are equal": SilentWhenEqual,
    "self-inclusion": WithoutOwnReward,
}
"""By the mistake that they undo."""


def _rewards(trajectories: Trajectories) -> Tensor:
    assert trajectories.rewards_B is not None
    return trajectories.rewards_B


def _grouped(trajectories: Trajectories) -> GroupedRewards:
    rewards_B = _rewards(trajectories)
    return GroupedRewards(rewards_B, torch.ones_like(rewards_B, dtype=torch.bool), trajectories.group_B)


def _deviation(grouped: GroupedRewards) -> Tensor:
    """The sample standard deviation of each row's group."""
    shifted_B = grouped.shifted_B
    centered_B = shifted_B - grouped.sum(shifted_B) / grouped.size_B
    return (grouped.sum(centered_B.square()) / (grouped.size_B - 1).clamp(min=1)).sqrt()
