"""How often each prompt has been solved of late."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tpg.errors import UserError
from tpg.training.curriculum.groups import Groups


@dataclass(frozen=True, eq=False)
class Estimates:
    """Counts of solved and scored responses by row of the task's data, older ones discounted."""

    solved_N: Tensor
    tried_N: Tensor

    @classmethod
    def of(cls, state: Mapping[str, Any], size: int) -> Estimates:
        """Those that an iteration has left; of nothing before the first. Raises `UserError` if rows are not as many."""
        if "solved" not in state:
            return cls(torch.zeros(size, dtype=torch.float64), torch.zeros(size, dtype=torch.float64))
        if len(state["solved"]) != size:
            raise UserError(
                f"curriculum: the checkpoint knows {len(state['solved'])} prompts, the task has {size}; continue with"
                " the same task"
            )
        return cls(state["solved"], state["tried"])

    @property
    def state(self) -> dict[str, Any]:
        """What a checkpoint holds."""
        return {"solved": self.solved_N, "tried": self.tried_N}

    def rates(self, prior: float) -> Tensor:
        """The estimated success rate of every row, (N,): `(solved + prior) / (tried + 1)`."""
        return (self.solved_N + prior) / (self.tried_N + 1.0)

    def after(self, groups: Groups, success_reward: float, decay: float) -> Estimates:
        """With what these groups tell; the older counts of their rows times `decay`."""
        rows = torch.tensor([prefix.row for prefix in groups.prefixes])
        solved = ((groups.rewards_NG >= success_reward) & groups.scored_NG).sum(-1).double()
        tried = groups.scored_NG.sum(-1).double()
        seen = torch.zeros(len(self.tried_N), dtype=torch.bool)
        seen[rows[tried > 0]] = True
        kept_N = torch.where(seen, decay, 1.0).double()
        return Estimates(
            (self.solved_N * kept_N).index_add(0, rows, solved), (self.tried_N * kept_N).index_add(0, rows, tried)
        )
