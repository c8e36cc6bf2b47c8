"""Estimators put right from outside, to find what is wrong with one of which nothing is known but what it does.

Each repair wraps any estimator and undoes one mistake by its weights alone. Where that makes the gradient exact, or
clearly better, the mistake is named.
"""

from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from tpg.component import component
from tpg.estimators.base import Answers, Estimator, GroupedRewards, Requests
from tpg.trajectories import Trajectories

LARGE = 1e6
TOLERANCE = 1e-6


@component
class Repaired(Estimator):
    """An estimator whose weights pass through something else."""

    needs_group: ClassVar[bool] = False
    """Whether it compares the responses to one prompt."""

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
    """Undoes a division by the standard deviation of the group's rewards, with whatever is added to it."""

    needs_group: ClassVar[bool] = True

    def weights(self, trajectories: Trajectories, answers: Answers) -> Tensor:
        """The inner weights times the deviation."""
        return _undivided(self.inner, trajectories, answers, _deviation(_grouped(trajectories)))


@component
class TimesBatchStd(Repaired):
    """The same with the deviation of the batch's rewards; batches are told apart by their draw."""

    def weights(self, trajectories: Trajectories, answers: Answers) -> Tensor:
        """The inner weights times the deviation."""
        batch = GroupedRewards(
            _rewards(trajectories), torch.ones_like(trajectories.row_B, dtype=torch.bool), trajectories.draw_B
        )
        return _undivided(self.inner, trajectories, answers, _deviation(batch))


@component
class TimesLength(Repaired):
    """Undoes a division by the response's own length."""

    def weights(self, trajectories: Trajectories, answers: Answers) -> Tensor:
        """The inner weights times the tokens of the response."""
        return self.inner.weights(trajectories, answers) * trajectories.action_mask_BT.sum(-1, keepdim=True)


@component
class WithoutOwnReward(Repaired):
    """Takes a response's reward out of its own baseline: what a share a of it cancels is put back by 1 / (1 - a).

    `R_i - sum_j a_j R_j` is `1 - a_i` times the response's reward less a baseline of the others.
    """

    needs_group: ClassVar[bool] = True

    def weights(self, trajectories: Trajectories, answers: Answers) -> Tensor:
        """The inner weights over their slope in the own reward, where that is one number below 1 for all tokens."""
        rewards_B = _rewards(trajectories)
        weights_BT = self.inner.weights(trajectories, answers)
        repaired_BT = weights_BT.clone()
        for index in trajectories.response_index_B.unique():
            own_B = trajectories.response_index_B == index
            slope_BT, twice_BT = (
                self.inner.weights(trajectories.replace(rewards_B=rewards_B + more * own_B), answers) - weights_BT
                for more in (1.0, 2.0)
            )
            slope_B1 = slope_BT[:, :1]
            alike_BT = (slope_BT - slope_B1).abs().masked_fill(~trajectories.action_mask_BT, 0.0) < TOLERANCE
            straight_BT = (twice_BT - 2 * slope_BT).abs() < TOLERANCE
            plain_B = (alike_BT & straight_BT).all(-1) & (slope_B1[:, 0] > TOLERANCE) & (slope_B1[:, 0] < 1)
            repaired_BT = torch.where((own_B & plain_B)[:, None], weights_BT / slope_B1, repaired_BT)
        return repaired_BT * trajectories.action_mask_BT


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

    needs_group: ClassVar[bool] = True

    def weights(self, trajectories: Trajectories, answers: Answers) -> Tensor:
        """The inner weights where the rewards differ."""
        return self.inner.weights(trajectories, answers) * (_deviation(_grouped(trajectories)) > 0)[:, None]


@component
class Negated(Repaired):
    """Undoes a wrong sign."""

    def weights(self, trajectories: Trajectories, answers: Answers) -> Tensor:
        """The inner weights the other way round."""
        return -self.inner.weights(trajectories, answers)


@component
class LessThatOfNoReward(Repaired):
    """Takes away what pushes whatever the rewards are."""

    def weights(self, trajectories: Trajectories, answers: Answers) -> Tensor:
        """The inner weights less those when nothing is rewarded."""
        return self.inner.weights(trajectories, answers) - _weights_at(self.inner, trajectories, answers, 0.0)


@component
class Unclipped(Repaired):
    """Undoes bounds on the weights: small rewards stay within them, and what is cut on one side shows on the other."""

    def weights(self, trajectories: Trajectories, answers: Answers) -> Tensor:
        """The slope of the inner weights between small rewards and their opposite."""
        small = 1e-3
        up, down = (_weights_at(self.inner, trajectories, answers, factor) for factor in (small, -small))
        return (up - down) / (2 * small)


@component
class OwnRewardAlone(Repaired):
    """Takes away the whole baseline, one that looks at the response itself included."""

    def weights(self, trajectories: Trajectories, answers: Answers) -> Tensor:
        """The inner weights less those when the response itself is not rewarded."""
        rewards_B = _rewards(trajectories)
        weights_BT = self.inner.weights(trajectories, answers)
        for index in trajectories.response_index_B.unique():
            own_B = trajectories.response_index_B == index
            shown = trajectories.replace(rewards_B=torch.where(own_B, 0.0, rewards_B))
            weights_BT = weights_BT - own_B[:, None] * self.inner.weights(shown, answers)
        return weights_BT


REPAIRS: dict[str, type[Repaired]] = {
    "wrong sign": Negated,
    "std normalisation": TimesGroupStd,
    "batch std normalisation": TimesBatchStd,
    "length normalisation": TimesLength,
    "discounting": LastWeight,
    "push in zero-variance groups": SilentWhenEqual,
    "a push that ignores the rewards": LessThatOfNoReward,
    "clipped weights": Unclipped,
    "self-inclusion": WithoutOwnReward,
    "a baseline that reads its own response": OwnRewardAlone,
}
"""By the mistake that they undo."""


def _weights_at(inner: Estimator, trajectories: Trajectories, answers: Answers, factor: float) -> Tensor:
    """The inner weights when all rewards and values are `factor` times what they are."""

    def times(values: Tensor | None) -> Tensor | None:
        return None if values is None else factor * values

    return inner.weights(
        trajectories.replace(rewards_B=times(trajectories.rewards_B), values_BT=times(trajectories.values_BT)),
        replace(
            answers,
            greedy_rewards_B=times(answers.greedy_rewards_B),
            continued_values_K=times(answers.continued_values_K),
        ),
    )


def _undivided(inner: Estimator, trajectories: Trajectories, answers: Answers, deviation_B: Tensor) -> Tensor:
    """The inner weights times the deviation.

    Weights that do not change with the scale of the rewards are taken at rewards that leave nothing of an epsilon.
    """
    weights_BT = inner.weights(trajectories, answers)
    large_BT = _weights_at(inner, trajectories, answers, LARGE)
    spread_B1 = (deviation_B > 0.01)[:, None]
    same_BT = (large_BT - weights_BT).abs() <= 0.02 * large_BT.abs()
    return (large_BT if (same_BT | ~spread_B1).all() else weights_BT) * deviation_B[:, None]


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
