"""Forward passes over an iteration's trajectories that carry no gradient into the update."""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from tpg.policies.base import Policy, Reference
from tpg.policies.critic import Critic
from tpg.training.faults.out_of_memory import Memory, in_parts
from tpg.training.options import Update
from tpg.training.parallel.ranks import Ranks
from tpg.training.splitting import Limits, Splitter
from tpg.trajectories import Trajectories


@dataclass(frozen=True, eq=False)
class Passes:
    """The policy, its reference and a critic over trajectories, as many at a time as the update takes."""

    policy: Policy
    reference: Reference | None
    temperature: float
    update: Update
    critic: Critic | None = None
    ranks: Ranks = field(default_factory=Ranks)
    """Who divides the rows; each gives the same trajectories, and gets all that was found."""
    memory: Memory = field(default_factory=Memory)

    @torch.no_grad()
    def with_logprobs(
        self, trajectories: Trajectories, *, old: bool, distribution: bool = False, values: bool = False
    ) -> Trajectories:
        """Adds the trainer's log-probabilities (`old`), the distribution's moments, a critic's values, a reference's
        log-probabilities.
        """
        old = old or distribution
        critic = self.critic if values else None
        hidden = critic is not None and critic.reads_policy
        if not (old or critic or self.reference):
            return trajectories
        limits = Limits.of(self.memory.bounded(self.update), self.policy, critic, trajectories)
        splitter = Splitter(trajectories, limits)
        dealt = splitter.dealt(torch.arange(len(trajectories)), self.ranks.replicas)

        def fields_of(index: Tensor) -> dict[str, Tensor]:
            # A process without a part passes any row: layers that are divided among processes need all of them.
            chosen = index if len(index) else torch.tensor([0])
            part = trajectories.select(chosen).trimmed().to(self.policy.device)
            fields: dict[str, Tensor] = {}
            statistics: Any = None
            if old or hidden:
                statistics = self.policy.statistics(part, self.temperature, distribution=distribution, hidden=hidden)
            if old:
                fields["old_logprobs_BT"] = statistics.logprobs
                if distribution:
                    fields["entropy_BT"] = statistics.entropy
                    fields["sum_squared_probs_BT"] = statistics.sum_squared_probs
            if critic:
                fields["values_BT"] = critic(part, statistics.hidden if hidden else None)
            if self.reference:
                fields["ref_logprobs_BT"] = self.reference.logprobs(part, self.temperature)
            return {name: values_BT.cpu() for name, values_BT in fields.items()}

        found: dict[str, Tensor] = {}

        def own_fields() -> list[tuple[Tensor, dict[str, Tensor]]]:
            own = dealt[self.ranks.replica]
            return [each for index in own for each in in_parts(fields_of, index, splitter, self.memory, self.ranks)]

        for parts in self.ranks.each(own_fields):
            for index, fields in parts:
                for name, values_BT in fields.items():
                    if name not in found:
                        found[name] = torch.zeros(trajectories.response_mask_BT.shape, dtype=values_BT.dtype)
                    if len(index):
                        found[name][index, : values_BT.shape[1]] = values_BT
        return trajectories.replace(**found)

    @torch.enable_grad()
    def with_score_norms(self, trajectories: Trajectories) -> Trajectories:
        """Adds the squared norm of each response's score function: one backward pass a response."""
        trainable = [parameter for parameter in self.policy.parameters() if parameter.requires_grad]

        def norm(row: int) -> float:
            part = trajectories.select(torch.tensor([row])).trimmed().to(self.policy.device)
            logprobs_BT = self.policy.statistics(part, self.temperature).logprobs
            total = torch.where(part.action_mask_BT, logprobs_BT, 0.0).sum()
            slopes = torch.autograd.grad(total, trainable, allow_unused=True)
            return float(sum(slope.float().square().sum() for slope in slopes if slope is not None))

        own = self.ranks.own(range(len(trajectories)))
        norms = [value for values in self.ranks.each(lambda: [norm(row) for row in own]) for value in values]
        return trajectories.replace(score_norms_B=torch.tensor(norms))
