"""Which responses are in memory together."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tpg.policies.base import Policy
from tpg.policies.critic import Critic
from tpg.policies.logprobs import context
from tpg.training.options import Update
from tpg.trajectories import Trajectories


@dataclass(frozen=True)
class Limits:
    """Bounds on what a forward and backward pass computes; None: no bound. A single response may exceed them."""

    tokens: int | None = None
    responses: int | None = None
    shares_prompts: bool = False
    """Whether a pass computes a prompt once for its responses and no padding, or else a rectangle."""

    @staticmethod
    def of(update: Update, policy: Policy, critic: Critic | None, trajectories: Trajectories) -> Limits:
        """Those of the update on such trajectories; a critic with a model of its own runs rectangles."""
        own_model = critic is not None and not critic.reads_policy
        shares_prompts = not own_model and policy.shares_prompts(context(trajectories))
        return Limits(update.tokens_per_microbatch, update.responses_per_microbatch, shares_prompts)


class Splitter:
    """Cuts chosen responses of these trajectories into parts within the limits."""

    def __init__(self, trajectories: Trajectories, limits: Limits) -> None:
        self.limits = limits
        self._prompts: list[int] = trajectories.prompt_mask_BP.sum(-1).tolist()
        self._lengths: list[int] = trajectories.lengths_B.tolist()
        self._groups: list[int] = trajectories.group_B.tolist()

    def cost(self, part: list[int]) -> int:
        """Tokens computed for it."""
        if self.limits.shares_prompts:
            prompts = {self._groups[i]: self._prompts[i] for i in part}
            return sum(prompts.values()) + sum(self._lengths[i] for i in part)
        widths = [max((lengths[i] for i in part), default=0) for lengths in (self._prompts, self._lengths)]
        return len(part) * sum(widths)

    def parts(
        self, chosen: Tensor, *, at_least: int = 0, whole_groups: bool = False, similar_lengths: bool = True
    ) -> list[Tensor]:
        """As few parts as fit, empty ones added up to `at_least`.

        Groups stay whole if they must, and where prompts are shared if they fit. A rectangle is best filled with
        responses of similar lengths; without `similar_lengths` they come as they were drawn, as evenly as may be.
        """
        groups = self.members(chosen.tolist())
        if whole_groups:
            if similar_lengths:
                groups.sort(key=lambda group: max(self._lengths[i] for i in group))
            parts = self._filled(groups)
        elif self.limits.shares_prompts and similar_lengths:
            parts = self._filled(self._cut(groups))
        else:
            ordered = [i for group in groups for i in group]
            if similar_lengths:
                ordered = sorted(chosen.tolist(), key=lambda i: self._lengths[i])
            parts = self._filled([[i] for i in ordered])
            even = _even(ordered, max(at_least, len(parts)))
            parts = even if all(map(self.fits, even)) else parts
        return [torch.tensor(part, dtype=torch.long) for part in parts + [[]] * (at_least - len(parts))]

    def dealt(
        self,
        chosen: Tensor,
        replicas: int,
        *,
        at_least: int = 0,
        whole_groups: bool = False,
        similar_lengths: bool = True,
    ) -> list[list[Tensor]]:
        """Parts for each of so many replicas of the model, as many for every one; the rest is as for `parts`."""

        def parts(share: Tensor, at_least: int) -> list[Tensor]:
            return self.parts(share, at_least=at_least, whole_groups=whole_groups, similar_lengths=similar_lengths)

        if replicas == 1:
            return [parts(chosen, at_least)]
        shares = self._shares(chosen.tolist(), replicas, whole_groups=whole_groups)
        dealt = [parts(share, at_least) for share in shares]
        most = max(map(len, dealt))
        return [own if len(own) == most else parts(share, most) for share, own in zip(shares, dealt, strict=True)]

    def _shares(self, chosen: list[int], replicas: int, *, whole_groups: bool) -> list[Tensor]:
        """The responses in shares of similar cost, groups whole if they must be or there are enough of them."""
        groups = self.members(chosen)
        units = groups if whole_groups or len(groups) >= replicas else [[i] for i in chosen]
        shares: list[list[int]] = [[] for _ in range(replicas)]
        costs = [0] * replicas
        for unit in sorted(units, key=self.cost, reverse=True):
            cheapest = costs.index(min(costs))
            shares[cheapest] += unit
            costs[cheapest] += self.cost(unit)
        return [torch.tensor(sorted(share), dtype=torch.long) for share in shares]

    def members(self, chosen: list[int]) -> list[list[int]]:
        """The responses by group, groups as they come."""
        members: dict[int, list[int]] = {}
        for response in chosen:
            members.setdefault(self._groups[response], []).append(response)
        return list(members.values())

    def fits(self, part: list[int]) -> bool:
        """Whether it is within the limits, or too small to be cut."""
        limits = self.limits
        if len(part) <= 1:
            return True
        if limits.responses is not None and len(part) > limits.responses:
            return False
        return limits.tokens is None or self.cost(part) <= limits.tokens

    def _cut(self, groups: list[list[int]]) -> list[list[int]]:
        """Groups that fit, and the others in pieces that do."""
        pieces = []
        for group in groups:
            pieces += [group] if self.fits(group) else self._filled([[i] for i in group])
        return pieces

    def _filled(self, units: list[list[int]]) -> list[list[int]]:
        """Units in their order, as many to a part as fit."""
        parts: list[list[int]] = []
        for unit in units:
            if parts and self.fits(parts[-1] + unit):
                parts[-1] += unit
            else:
                parts.append(list(unit))
        return parts


def _even(ordered: list[int], count: int) -> list[list[int]]:
    ends = [len(ordered) * i // count for i in range(1, count + 1)] if count else []
    return [ordered[start:end] for start, end in zip([0, *ends], ends, strict=False)]
