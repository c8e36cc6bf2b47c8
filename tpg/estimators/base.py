"""What an estimator is: it says what it needs, then turns rewards into weights."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from tpg.component import component
from tpg.numerics import group_sum
from tpg.trajectories import Trajectories


@dataclass(frozen=True, eq=False)
class Continuations:
    """Prefixes to be continued from: the first `position_K` response tokens of trajectory `parent_K`.

    Equal prefixes of a group are continued once and share the answer.
    """

    parent_K: Tensor
    position_K: Tensor
    count: int
    """Continuations of each prefix."""
    max_tokens: int | None = None
    """Limit on the tokens of a continuation; None: what the parent had left."""


@dataclass(frozen=True, eq=False)
class Requests:
    """What an estimator needs beyond the rewards."""

    greedy: bool = False
    """The reward of one greedy response to each prompt."""
    distribution: bool = False
    """Entropy and sum of squared probabilities of the policy at every response token."""
    score_norms: bool = False
    """The squared norm of every response's score function: a backward pass for each."""
    continuations: Continuations | None = None


@dataclass(frozen=True, eq=False)
class Answers:
    """What the requests brought; what belongs to tokens comes as fields of the trajectories."""

    greedy_rewards_B: Tensor | None = None
    """For each trajectory the reward of the greedy response to its prompt."""
    greedy_scored_B: Tensor | None = None
    continued_values_K: Tensor | None = None
    """For each prefix that was asked for the mean reward of its scored continuations; NaN where none was scored."""
    state: Mapping[str, float] = field(default_factory=dict)
    """What the estimator carries from one iteration to the next."""


@component
class Estimator(ABC):
    """Response-level rewards to per-token weights.

    The policy-gradient estimate is the mean over responses of the sum over tokens of weight times score function.
    """

    min_group: ClassVar[int] = 1
    """Scored responses a group must have; smaller ones are left out of the update and counted."""
    min_batch: ClassVar[int] = 1
    """Responses an iteration must have, over all groups, for a weight to differ from zero."""
    needs_critic: ClassVar[bool] = False
    """Whether it reads `trajectories.values_BT`, a critic's value before every response token."""

    continues: ClassVar[bool] = False
    """Whether it asks for continuations of its responses."""
    response_level: ClassVar[bool] = False
    """Whether every token of a response gets the same weight."""

    @property
    def draws(self) -> bool:
        """Whether it decides by lot: it then reads `trajectories.uniforms_BT`, a number in [0, 1) for every token."""
        return False

    def requests(self, trajectories: Trajectories) -> Requests:
        """What is needed beyond the rewards of `trajectories`."""
        return Requests()

    def kept(self, trajectories: Trajectories, answers: Answers) -> Tensor:
        """Which trajectories take part in the update, (B,) bool: those scored, in groups that are large enough."""
        scored_B = trajectories.scored_B
        assert scored_B is not None, "score the trajectories first"
        return scored_B & (group_sum(scored_B.long(), trajectories.group_B) >= self.min_group)

    @abstractmethod
    def weights(self, trajectories: Trajectories, answers: Answers) -> Tensor:
        """The weight of every response token, (B, T); zero where nothing is kept or the policy chose nothing."""

    def returns(self, trajectories: Trajectories) -> Tensor:
        """What a critic's value before every token should be, (B, T), for one of these rewards: the reward itself."""
        assert trajectories.rewards_B is not None
        return trajectories.rewards_B[:, None].expand(trajectories.action_mask_BT.shape)

    def without(self) -> "dict[str, Estimator]":
        """This estimator less one ingredient that may bias it, by the ingredient's name; the audit blames by these."""
        return {}

    def in_miniature(self, horizon: int) -> "Estimator":
        """What stands for this estimator where responses have at most `horizon` tokens.

        Counts of tokens are cut below it, so that what happens in long responses happens in short ones.
        """
        return self

    def lots(self, width: int) -> list[tuple[float, Tensor]]:
        """Numbers (width,) for `uniforms_BT` that bring about every decision there is, each with its probability.

        What lets the audit take the mean over the lot exactly.
        """
        return [(1.0, torch.zeros(width, dtype=torch.float64))]

    def initial_state(self) -> dict[str, float]:
        """What is carried into the first iteration."""
        return {}

    def next_state(self, trajectories: Trajectories, state: Mapping[str, float]) -> dict[str, float]:
        """What is carried into the next iteration, given this one's scored trajectories."""
        return dict(state)


@dataclass(frozen=True, eq=False)
class GroupedRewards:
    """Rewards with their groups, as a response-level estimator reads them; what is not kept reads 0."""

    rewards_B: Tensor
    kept_B: Tensor
    group_B: Tensor

    @property
    def size_B(self) -> Tensor:
        """How many are kept in each row's group, at least 1."""
        return self.sum(self.kept_B.to(self.rewards_B.dtype)).clamp(min=1)

    @property
    def shifted_B(self) -> Tensor:
        """Rewards less their group's largest: differences that are exactly zero where a group's rewards are equal."""
        lowest = torch.where(self.kept_B, self.rewards_B, -torch.inf)
        groups = int(self.group_B.max()) + 1 if len(self.group_B) else 0
        largest = torch.full((groups,), -torch.inf, dtype=lowest.dtype, device=lowest.device)
        largest = largest.scatter_reduce(0, self.group_B, lowest, "amax")[self.group_B]
        return torch.where(self.kept_B, self.rewards_B - largest, 0.0)

    def sum(self, values_B: Tensor) -> Tensor:
        """Each row's group sum of `values_B`."""
        return group_sum(values_B, self.group_B)


@component
class ResponseLevelEstimator(Estimator):
    """An estimator that gives every token of a response the same weight, its advantage."""

    response_level: ClassVar[bool] = True

    @abstractmethod
    def advantages(self, grouped: GroupedRewards, answers: Answers) -> Tensor:
        """The advantage of each response, (B,); rows that are not kept may hold any finite number."""

    def weights(self, trajectories: Trajectories, answers: Answers) -> Tensor:
        """The response's advantage on each of its tokens."""
        kept_B = self.kept(trajectories, answers)
        assert trajectories.rewards_B is not None
        rewards_B = torch.where(kept_B, trajectories.rewards_B, 0.0).detach()
        grouped = GroupedRewards(rewards_B, kept_B, trajectories.group_B)
        advantages_B = torch.where(kept_B, self.advantages(grouped, answers), 0.0)
        return advantages_B[:, None] * trajectories.action_mask_BT
