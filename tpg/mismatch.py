"""Importance weights for rollouts whose log-probabilities differ from the trainer's.

An engine that computes in another precision or order, or that runs with older weights, samples from a slightly
different policy. `ratio = pi_train / pi_rollout` of the tokens as they were generated corrects for it. Over whole
responses that is exact as long as nothing is cut; over single tokens it never is. (Truncation: Ionides 2008.)
"""

from abc import abstractmethod
from typing import ClassVar, Literal

from pydantic import Field, ValidationInfo, field_validator
from torch import Tensor

from tpg.component import component
from tpg.trajectories import Trajectories


@component
class Mismatch:
    """No correction."""

    corrects: ClassVar[bool] = False

    def without(self) -> "dict[str, Mismatch]":
        """This correction less what may bias it, by the ingredient's name; the audit blames by these."""
        return {}

    def factors(self, trajectories: Trajectories) -> Tensor | None:
        """What multiplies each token's loss, (B, T), or None; `old_logprobs_BT` are the trainer's before the update."""
        return None


@component
class NoMismatch(Mismatch):
    """The rollout's log-probabilities are taken to be the trainer's."""


@component
class Correction(Mismatch):
    """A correction at the level of tokens or of whole responses."""

    corrects: ClassVar[bool] = True

    level: Literal["token", "sequence"] = "sequence"

    def factors(self, trajectories: Trajectories) -> Tensor:
        """The bounded ratios."""
        return self.bounded(ratios(trajectories, self.level))

    @abstractmethod
    def bounded(self, ratio_BT: Tensor) -> Tensor:
        """The ratios, kept from growing without limit."""


@component
class Truncated(Correction):
    """`min(ratio, cap)`: low variance, biased where it cuts."""

    cap: float = Field(default=2.0, ge=1)

    def without(self) -> dict[str, Mismatch]:
        """Without the bound; over whole responses."""
        parts: dict[str, Mismatch] = {"truncated importance weights": Truncated(level=self.level, cap=1e9)}
        if self.level == "token":
            parts["token-level importance weights"] = Truncated(level="sequence", cap=self.cap)
        return parts

    def bounded(self, ratio_BT: Tensor) -> Tensor:
        """At most `cap`."""
        return ratio_BT.clamp(max=self.cap)


@component
class Masked(Correction):
    """The ratio within [low, high]; what lies outside is left out of the loss."""

    low: float = Field(default=0.5, ge=0, le=1)
    high: float = Field(default=2.0, ge=1)

    @field_validator("high")
    @classmethod
    def _is_above_low(cls, high: float, info: ValidationInfo) -> float:
        if high == info.data.get("low"):
            raise ValueError(f"low={high:g} and high leave nothing between them")
        return high

    def without(self) -> dict[str, Mismatch]:
        """Without the bounds; over whole responses."""
        parts: dict[str, Mismatch] = {"masked importance weights": Masked(level=self.level, low=0.0, high=1e9)}
        if self.level == "token":
            parts["token-level importance weights"] = Masked(level="sequence", low=self.low, high=self.high)
        return parts

    def bounded(self, ratio_BT: Tensor) -> Tensor:
        """0 outside the interval."""
        inside_BT = (ratio_BT >= self.low) & (ratio_BT <= self.high)
        return ratio_BT.masked_fill(~inside_BT, 0.0)  # a product would turn an overflowed ratio into NaN


def ratios(trajectories: Trajectories, level: str) -> Tensor:
    """`pi_train / pi_rollout` of every token, or of the response on each of its tokens; 1 where nothing was chosen."""
    assert trajectories.old_logprobs_BT is not None, "a mismatch is measured against the trainer's log-probabilities"
    gap_BT = gaps(trajectories.old_logprobs_BT, trajectories)
    if level == "sequence":
        gap_BT = gap_BT.sum(-1, keepdim=True).expand_as(gap_BT)
    return gap_BT.exp()


def gaps(trainer_BT: Tensor, trajectories: Trajectories) -> Tensor:
    """`log pi_train - log pi_rollout` of every token, nats, without gradient; 0 where nothing was chosen."""
    gap_BT = (trainer_BT - trajectories.rollout_logprobs_BT).detach()
    return gap_BT.masked_fill(~trajectories.action_mask_BT, 0.0)
