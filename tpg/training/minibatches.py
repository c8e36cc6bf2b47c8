"""From an iteration's trajectories to the micro-batches that Lightning's loop runs."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from tpg.aggregation import MinibatchSize
from tpg.randomness import Purpose, permutation
from tpg.training.options import Update
from tpg.trajectories import Trajectories


@dataclass(frozen=True, eq=False)
class MicroBatch:
    """A part of a minibatch; no trajectories where the minibatch needs fewer parts than others."""

    trajectories: Trajectories | None
    size: MinibatchSize
    """Of the whole minibatch."""


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

    @property
    def parts(self) -> int:
        """Micro-batches of every minibatch."""
        largest = max(int(self.needed_B[index].sum()) for index in self.minibatches)
        return max(1, math.ceil(largest / self.responses_per_microbatch))

    def __len__(self) -> int:
        return len(self.minibatches) * self.parts

    def __iter__(self) -> Iterator[MicroBatch]:
        actions_B = self.trajectories.action_mask_BT.sum(-1)
        for index in self.minibatches:
            size = MinibatchSize(len(index), int(actions_B[index].sum()), self.max_response_tokens)
            needed = index[self.needed_B[index]]
            by_length = needed[torch.argsort(self.trajectories.lengths_B[needed], stable=True)]
            for part in torch.tensor_split(by_length, self.parts):
                chosen = self.trajectories.select(part).trimmed() if len(part) else None
                yield MicroBatch(chosen, size)


def experience_loader(
    trajectories: Trajectories,
    kept_B: Tensor,
    needed_B: Tensor,
    update: Update,
    max_response_tokens: int,
    seed: int,
    iteration: int,
) -> ExperienceLoader:
    """Shuffle the responses into minibatches, anew each update epoch; those not kept take a place but do not count."""
    responses = len(trajectories)
    per_minibatch = update.responses_per_minibatch or responses
    minibatches = []
    for epoch in range(update.epochs):
        order = torch.tensor(permutation(responses, seed, Purpose.MINIBATCHES, iteration, epoch))
        minibatches += [index[kept_B[index]] for index in order.split(per_minibatch)]
    return ExperienceLoader(
        trajectories, tuple(minibatches), needed_B, update.responses_per_microbatch, max_response_tokens
    )
