"""Forward passes over an iteration's trajectories that carry no gradient into the update."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tpg.policies.base import Policy, Reference
from tpg.policies.critic import Critic
from tpg.training.options import Update
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
        found: dict[str, Tensor] = {}
        limits = Limits.of(self.update, self.policy, critic, trajectories)
        for index in Splitter(trajectories, limits).parts(torch.arange(len(trajectories))):
            part = trajectories.select(index).trimmed().to(self.policy.device)
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
            for name, values_BT in fields.items():
                if name not in found:
                    found[name] = torch.zeros(trajectories.response_mask_BT.shape, dtype=values_BT.dtype)
                found[name][index, : values_BT.shape[1]] = values_BT.cpu()
        return trajectories.replace(**found)

    @torch.enable_grad()
    def with_score_norms(self, trajectories: Trajectories) -> Trajectories:
        """Adds the squared norm of each response's score function: one backward pass a response."""
        trainable = [parameter for parameter in self.policy.parameters() if parameter.requires_grad]
        norms = []
        for row in range(len(trajectories)):
            part = trajectories.select(torch.tensor([row])).trimmed().to(self.policy.device)
            logprobs_BT = self.policy.statistics(part, self.temperature).logprobs
            total = torch.where(part.action_mask_BT, logprobs_BT, 0.0).sum()
            slopes = torch.autograd.grad(total, trainable, allow_unused=True)
            norms.append(sum(slope.float().square().sum() for slope in slopes if slope is not None))
        return trajectories.replace(score_norms_B=torch.stack(norms).cpu())  # type: ignore[arg-type]
