"""Segments of a response, each weighed by what it did to the expected reward."""

import dataclasses

import torch
from torch import Tensor

from tpg.component import component
from tpg.estimators.boundaries import Boundaries
from tpg.estimators.prefix_values import PrefixValueEstimator, after, at_or_before
from tpg.trajectories import Trajectories


@component
class Segment(PrefixValueEstimator):
    """`V(segment's end) - V(segment's start)` on every token of a segment. Unbiased. (VinePPO, arXiv 2410.01679.)

    The first segment starts at the prompt; the last one ends with the response, whose reward stands for its value.
    It costs `continuations` responses a boundary and as many a prompt.
    """

    boundaries: Boundaries

    @property
    def draws(self) -> bool:
        """Whether the boundaries are decided by lot."""
        return self.boundaries.draws

    def in_miniature(self, horizon: int) -> "Segment":
        """With boundaries that are met."""
        return dataclasses.replace(self, boundaries=self.boundaries.in_miniature(horizon))

    def lots(self, width: int) -> list[tuple[float, Tensor]]:
        """The lots of the boundaries."""
        return self.boundaries.lots(width)

    def asked(self, trajectories: Trajectories) -> Tensor:
        """The prompt and what precedes each boundary."""
        starts_BT = self.boundaries.at(trajectories).clone()
        starts_BT[:, 0] = True
        return starts_BT

    def differences(self, trajectories: Trajectories, values_BN: Tensor) -> Tensor:
        """`V(end) - V(start)` of the segment that holds the token."""
        starts_BT = self.asked(trajectories)
        return torch.gather(values_BN, 1, after(starts_BT)) - torch.gather(values_BN, 1, at_or_before(starts_BT))
