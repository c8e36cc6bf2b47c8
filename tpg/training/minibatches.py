"""From an iteration's trajectories to the micro-batches that Lightning's loop runs."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from tpg.aggregation import MinibatchSize
from tpg.errors import UserError
from tpg.randomness import Purpose, permutation
from tpg.training.options import Update
from tpg.training.parallel.ranks import Ranks
from tpg.training.splitting import Limits, Splitter
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
    limits: Limits
    max_response_tokens: int
    whole_groups: bool = False
    """Whether the responses to a prompt stay in one micro-batch, which exceeds its size only if a group alone does."""
    similar_lengths: bool = True
    """Micro-batches hold what is computed with least waste; else a random choice of prompts' responses, evenly."""
    ranks: Ranks = field(default_factory=Ranks)
    """Who divides the micro-batches; a replica's are as many as any other's."""

    @cached_property
    def parts(self) -> int:
        """Micro-batches of every minibatch."""
        return max(1, *(len(self._split(index)) for index in self.minibatches))

    def __len__(self) -> int:
        return len(self.minibatches) * self.parts

    def __iter__(self) -> Iterator[MicroBatch]:
        actions_B = self.trajectories.action_mask_BT.sum(-1)
        for index in self.minibatches:
            size = MinibatchSize(len(index), int(actions_B[index].sum()), self.max_response_tokens)
            for part in self._split(index, self.parts):
                chosen = self.trajectories.select(part).trimmed() if len(part) else None
                yield MicroBatch(chosen, size)

    def _split(self, index: Tensor, at_least: int = 0) -> list[Tensor]:
        """This replica's share of the needed responses of a minibatch, in parts."""
        dealt = self._splitter.dealt(
            index[self.needed_B[index]],
            self.ranks.replicas,
            at_least=at_least,
            whole_groups=self.whole_groups,
            similar_lengths=self.similar_lengths,
        )
        return dealt[self.ranks.replica]

    @cached_property
    def _splitter(self) -> Splitter:
        return Splitter(self.trajectories, self.limits)


def experience_loader(
    trajectories: Trajectories,
    kept_B: Tensor,
    needed_B: Tensor,
    update: Update,
    max_response_tokens: int,
    seed: int,
    iteration: int,
    whole_groups: bool = False,
    limits: Limits | None = None,
    ranks: Ranks | None = None,
) -> ExperienceLoader:
    """Shuffle the responses into minibatches, anew each update epoch; those not kept take a place but do not count.

    With `whole_groups` it is groups that are shuffled, and a minibatch holds whole ones. `limits` are the update's on
    rectangles unless given.
    """
    limits = limits or Limits(update.tokens_per_microbatch, update.responses_per_microbatch)
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
        trajectories,
        tuple(minibatches),
        needed_B,
        limits,
        max_response_tokens,
        whole_groups,
        ranks=ranks or Ranks(),
    )


def grouped(trajectories: Trajectories) -> Tensor:
    """The indices of each group's responses, (groups, G), as many in every group."""
    sizes = torch.bincount(trajectories.group_B)
    assert (sizes == sizes[0]).all(), "every prompt has as many responses"
    return torch.argsort(trajectories.group_B, stable=True).reshape(len(sizes), -1)
