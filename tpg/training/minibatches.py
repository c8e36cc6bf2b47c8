"""From an iteration's trajectories to the micro-batches that Lightning's loop runs."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from tpg.aggregation import MinibatchSize
from tpg.errors import UserError
from tpg.randomness import Purpose, permutation
from tpg.training.options import Update
from tpg.trajectories import Trajectories


class MicroBatch:
    """A part of a minibatch of this size; no trajectories where the minibatch needs fewer parts than others.

    No dataclass: Lightning would take one apart to convert its tensors to the precision of the weights.
    """

    def __init__(self, trajectories: Trajectories | None, size: MinibatchSize) -> None:
        self.trajectories = trajectories
        self.size = size


@dataclass(frozen=True, eq=False)
class ExperienceLoader:
    """A sized iterable over an iteration: update epochs x minibatches x micro-batches."""

    trajectories: Trajectories
    minibatches: tuple[Tensor, ...]
    """Indices of the trajectories that count in each minibatch."""
    needed_B: Tensor
    """Trajectories whose loss has a gradient; the others count in the sizes and skip the passes."""
    responses_per_microbatch: int
    max_response_tokens: int
    whole_groups: bool = False
    """Whether the responses to a prompt stay in one micro-batch, which exceeds its size only if a group alone does."""
    similar_lengths: bool = True
    """Micro-batches hold responses of similar lengths, which saves padding; else a random choice of prompts'."""

    @property
    def parts(self) -> int:
        """Micro-batches of every minibatch."""
        if self.whole_groups:
            return max(1, *(len(self._packed_groups(index)) for index in self.minibatches))
        largest = max(int(self.needed_B[index].sum()) for index in self.minibatches)
        return max(1, math.ceil(largest / self.responses_per_microbatch))

    def __len__(self) -> int:
        return len(self.minibatches) * self.parts

    def __iter__(self) -> Iterator[MicroBatch]:
        actions_B = self.trajectories.action_mask_BT.sum(-1)
        for index in self.minibatches:
            size = MinibatchSize(len(index), int(actions_B[index].sum()), self.max_response_tokens)
            for part in self._split(index):
                chosen = self.trajectories.select(part).trimmed() if len(part) else None
                yield MicroBatch(chosen, size)

    def _split(self, index: Tensor) -> list[Tensor]:
        """The needed responses of a minibatch in `parts` parts, short ones first."""
        if self.whole_groups:
            packed = self._packed_groups(index)
            return packed + [index[:0]] * (self.parts - len(packed))
        needed = index[self.needed_B[index]]
        if self.similar_lengths:
            ordered = needed[torch.argsort(self.trajectories.lengths_B[needed], stable=True)]
        else:
            ordered = torch.tensor([i for group in self._members(index) for i in group], dtype=torch.long)
        return list(torch.tensor_split(ordered, self.parts))

    def _packed_groups(self, index: Tensor) -> list[Tensor]:
        """The needed responses of a minibatch, group after group by their longest, as many to a part as fit."""
        members, lengths_B = self._members(index), self.trajectories.lengths_B
        if self.similar_lengths:
            members.sort(key=lambda group: int(lengths_B[group].max()))
        parts: list[list[int]] = []
        for group in members:
            if not parts or len(parts[-1]) + len(group) > self.responses_per_microbatch:
                parts.append([])
            parts[-1] += group
        return [torch.tensor(part) for part in parts]

    def _members(self, index: Tensor) -> list[list[int]]:
        """The needed responses of a minibatch by group, groups as they come."""
        groups = self.trajectories.group_B.tolist()
        members: dict[int, list[int]] = {}
        for response in index[self.needed_B[index]].tolist():
            members.setdefault(groups[response], []).append(response)
        return list(members.values())


def experience_loader(
    trajectories: Trajectories,
    kept_B: Tensor,
    needed_B: Tensor,
    update: Update,
    max_response_tokens: int,
    seed: int,
    iteration: int,
    whole_groups: bool = False,
) -> ExperienceLoader:
    """Shuffle the responses into minibatches, anew each update epoch; those not kept take a place but do not count.

    With `whole_groups` it is groups that are shuffled, and a minibatch holds whole ones.
    """
    responses = len(trajectories)
    members = grouped(trajectories) if whole_groups else torch.arange(responses)[:, None]
    per_minibatch = update.responses_per_minibatch or responses
    count, size = members.shape
    if responses > per_minibatch and per_minibatch % size:
        raise UserError(
            f"update.responses_per_minibatch={per_minibatch}: the objective compares the responses to a prompt; give a"
            f" multiple of rollout.responses_per_prompt={size}"
        )
    minibatches = []
    for epoch in range(update.epochs):
        order = torch.tensor(permutation(count, seed, Purpose.MINIBATCHES, iteration, epoch))
        for chosen in order.split(max(1, per_minibatch // size)):
            index = members[chosen].flatten()
            minibatches.append(index[kept_B[index]])
    return ExperienceLoader(
        trajectories, tuple(minibatches), needed_B, update.responses_per_microbatch, max_response_tokens, whole_groups
    )


def grouped(trajectories: Trajectories) -> Tensor:
    """The indices of each group's responses, (groups, G), as many in every group."""
    sizes = torch.bincount(trajectories.group_B)
    assert (sizes == sizes[0]).all(), "every prompt has as many responses"
    return torch.argsort(trajectories.group_B, stable=True).reshape(len(sizes), -1)
