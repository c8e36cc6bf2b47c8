"""Scored responses by the group they belong to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from tpg.rollouts.engine import Prefix
from tpg.training.scoring import Scored, joined


@dataclass(frozen=True, eq=False)
class Groups:
    """N prompts, each with its G scored responses side by side in the prompts' order."""

    prefixes: tuple[Prefix, ...]
    scored: Scored

    def __len__(self) -> int:
        return len(self.prefixes)

    @property
    def size(self) -> int:
        """G."""
        return len(self.prefixes[0].keys)

    @property
    def rewards_NG(self) -> Tensor:
        """As the reward terms gave them; 0 where unscored."""
        rewards_B = self.scored.trajectories.rewards_B
        assert rewards_B is not None
        return rewards_B.view(-1, self.size)

    @property
    def scored_NG(self) -> Tensor:
        """Which of them have a reward."""
        scored_B = self.scored.trajectories.scored_B
        assert scored_B is not None
        return scored_B.view(-1, self.size)

    @property
    def mixed_N(self) -> Tensor:
        """Whether two of a group's rewards differ; unscored responses have none."""
        largest_N = self.rewards_NG.masked_fill(~self.scored_NG, -torch.inf).amax(-1)
        smallest_N = self.rewards_NG.masked_fill(~self.scored_NG, torch.inf).amin(-1)
        return largest_N > smallest_N

    @property
    def tokens(self) -> int:
        """What the policy generated for them."""
        return int(self.scored.trajectories.action_mask_BT.sum())

    def take(self, places: Sequence[int]) -> Groups:
        """Some of them, in this order; what is told of failed rewards stays that of all."""
        index = (torch.tensor(places, dtype=torch.long)[:, None] * self.size + torch.arange(self.size)).flatten()
        chosen = replace(
            self.scored,
            trajectories=self.scored.trajectories.select(index),
            samples=tuple(self.scored.samples[i] for i in index.tolist()),
        )
        return Groups(tuple(self.prefixes[place] for place in places), chosen)

    def plus(self, others: Groups) -> Groups:
        """These and then others."""
        return Groups((*self.prefixes, *others.prefixes), joined([self.scored, others.scored]))


def difficulty(groups: Groups, success_reward: float) -> dict[str, float]:
    """The share of groups whose scored responses are all solved, none of which is, and of those between; NaN of none.

    Groups without a scored response are left out.
    """
    tried_N = groups.scored_NG.sum(-1)
    solved_N = ((groups.rewards_NG >= success_reward) & groups.scored_NG).sum(-1)[tried_N > 0]
    tried_N = tried_N[tried_N > 0]
    all_solved, none_solved = solved_N == tried_N, solved_N == 0
    shares = {"all_solved": all_solved, "none_solved": none_solved, "mixed": ~all_solved & ~none_solved}
    return {f"curriculum/{name}": float(share_N.float().mean()) for name, share_N in shares.items()}
