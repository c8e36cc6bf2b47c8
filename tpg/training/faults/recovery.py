"""An optimizer step whose passes ran out of memory, made again in smaller parts with the same gradient."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from tpg.policies.memory import tried
from tpg.training.minibatches import MicroBatch
from tpg.training.splitting import Limits, Splitter

if TYPE_CHECKING:
    from tpg.training.module import TrajectoryPolicyGradient


class Recovery:
    """Stands between the module and Lightning's backward pass.

    A loss that does not fit is left to `backward`, which makes it in parts: Lightning clears gradients between the two.
    A backward pass that fails has already added to some gradients: all micro-batches of the step are then made again.

    Lightning holds the loss, divided and before a scaler too, while `backward` is called: what it is given is a leaf of
    the loss's value, so that the graph can be let go of here. With several processes, whose passes their strategy sees,
    it is the loss itself, and memory that runs out ends the run.
    """

    def __init__(self, module: TrajectoryPolicyGradient) -> None:
        self._module = module
        self._step: list[MicroBatch] = []
        self._in_parts = False
        self._graph: Tensor | None = None

    def begin_step(self) -> None:
        """Forget the micro-batches of the last step."""
        self._step = []

    def loss(self, batch: MicroBatch) -> Tensor:
        """A micro-batch's loss; 0 where `backward` is to make it in parts."""
        self._step.append(batch)
        bound = self._module.collector.memory.tokens
        self._in_parts = self._alone and bound is not None and self._cost(batch) > bound
        if not self._in_parts:
            found = tried(lambda: self._module.loss_of(batch))
            if found and not self._alone:
                return found[0]
            if found:
                self._graph, self._leaf = found[0], found[0].detach().requires_grad_()
                return self._leaf
            self._lower(batch)
            self._in_parts = True
        return torch.zeros((), device=self._module.policy.device, requires_grad=True)

    def backward(self, plain: Callable[[], None]) -> None:
        """The gradient of the micro-batch in hand: by `plain` backward pass of what `loss` gave, or in parts."""
        module, counted = self._module, not self._in_parts
        todo = self._step[-1:]
        if not self._in_parts:
            if tried(lambda: self._whole(plain)):
                return
            self._lower(self._step[-1])
            todo = self._begun_again()
        metrics = copy.deepcopy(module.update_metrics)
        while (too_large := self._made(todo, counted)) is not None:
            self._lower(too_large)
            todo = self._begun_again()
            module.update_metrics = copy.deepcopy(metrics)

    def _whole(self, plain: Callable[[], None]) -> None:
        plain()
        graph, self._graph = self._graph, None
        if graph is not None:
            graph.backward(self._leaf.grad)  # what Lightning has multiplied the loss by

    def _begun_again(self) -> list[MicroBatch]:
        for optimizer in self._module.trainer.optimizers:
            optimizer.zero_grad()
        return self._step

    def _made(self, batches: Sequence[MicroBatch], counted: bool) -> MicroBatch | None:
        """Make their backward passes in parts that the bound allows; the part that did not fit, if one did not."""
        for batch in batches:
            # Those before the one in hand are in the metrics already.
            count = not counted and batch is self._step[-1]
            for part in self._parts(batch):
                if not tried(lambda part=part, count=count: self._pass(part, count)):  # type: ignore[misc]
                    return part
        return None

    def _pass(self, batch: MicroBatch, count: bool) -> None:
        trainer = self._module.trainer
        with trainer.precision_plugin.forward_context():
            loss = self._module.loss_of(batch, count=count)
        scaler = getattr(trainer.precision_plugin, "scaler", None)
        loss = loss / trainer.accumulate_grad_batches
        (loss if scaler is None else scaler.scale(loss)).backward()

    def _parts(self, batch: MicroBatch) -> list[MicroBatch]:
        if batch.trajectories is None:
            return [batch]
        trajectories, splitter = batch.trajectories, self._splitter(batch)
        chosen = splitter.parts(torch.arange(len(trajectories)), whole_groups=self._whole_groups)
        return [MicroBatch(trajectories.select(part).trimmed(), batch.size) for part in chosen]

    def _cost(self, batch: MicroBatch) -> int:
        if batch.trajectories is None:
            return 0
        return self._splitter(batch).cost(list(range(len(batch.trajectories))))

    def _lower(self, batch: MicroBatch) -> None:
        trajectories, whole = batch.trajectories, self._whole_groups
        units = 0 if trajectories is None else len(trajectories.group_B.unique()) if whole else len(trajectories)
        collector = self._module.collector
        collector.memory.lower(self._cost(batch), collector.ranks, divisible=units > 1, whole_groups=whole)

    def _splitter(self, batch: MicroBatch) -> Splitter:
        assert batch.trajectories is not None
        collector = self._module.collector
        update = collector.memory.bounded(collector.update)
        limits = Limits.of(update, collector.policy, collector.critic, batch.trajectories)
        return Splitter(batch.trajectories, limits)

    @property
    def _alone(self) -> bool:
        return self._module.collector.ranks.world == 1

    @property
    def _whole_groups(self) -> bool:
        return self._module.collector.method.objective.needs_groups
