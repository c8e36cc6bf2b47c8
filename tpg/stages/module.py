"""The LightningModule of a stage: an epoch of Lightning's is one optimizer step, so that any step can be the last."""

from __future__ import annotations

import math
import time
from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Generic, Protocol, TypeVar

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn

from tpg.errors import UserError
from tpg.policies.memory import tried
from tpg.stages.memory import Memory
from tpg.stages.options import Stage
from tpg.stages.order import Order
from tpg.training.faults.nonfinite import finite, forget_gradients, scale_too_large
from tpg.training.module import IterationCallback
from tpg.training.parallel.gradients import total_norm
from tpg.training.parallel.ranks import Ranks

Rows = tuple[int, ...]
T = TypeVar("T")


class Data(Protocol):
    """Rows as tokens."""

    def __len__(self) -> int: ...

    def length(self, row: int) -> int:
        """Tokens that a row is computed on."""

    def counted(self, rows: Sequence[int]) -> int:
        """How many tokens of these rows count as seen."""


D = TypeVar("D", bound=Data)


class Passes:
    """The parts of one step, in as many passes."""

    def __init__(self, parts: Sequence[Rows]) -> None:
        self.parts = parts

    def __len__(self) -> int:
        return len(self.parts)

    def __iter__(self) -> Iterator[Rows]:
        return iter(self.parts)


class StageModule(LightningModule, Generic[D]):
    """Trains on the rows of `Order`, a step at a time; what the loss is and what is measured is a subclass's.

    A step's loss is divided by a count of its rows or tokens that is fixed before they are divided among processes and
    cut into passes, so that neither changes anything. A pass of a process alone is made in `backward`, where it can be
    repeated in smaller ones; several make their passes together, and Lightning's strategy must see them.
    """

    def __init__(self, trained: nn.Module, data: D, held_out_data: D, stage: Stage) -> None:
        super().__init__()
        self.trained = trained
        self.data = data
        self.held_out_data = held_out_data
        self.order = Order(len(data), stage.per_step, stage.epochs, stage.seed)
        self.stage = stage
        self.memory = Memory(stage.tokens_per_microbatch)
        self.ranks = Ranks()
        """The processes that divide the stage's work; set before it begins."""
        self.total_tokens = 0
        """That a loss was taken on, or read by a reward model, since the beginning."""
        self.begun_after = 0
        """The step after which this process goes on."""
        self.metrics: dict[str, float] = {}
        self.on_pass: Callable[[], None] = lambda: None
        """Called before each pass over held-out rows; may raise to end the run."""
        self._tally: dict[str, float] = {}
        self._made: list[int] = []
        """Rows of the step whose passes were made, or are in hand."""
        self._began = 0.0

    @abstractmethod
    def parts(self, data: D, rows: Sequence[int]) -> list[Rows]:
        """One or more rows in parts that fit into memory together."""

    @abstractmethod
    def cost(self, data: D, part: Rows) -> int:
        """Tokens that a pass on this part computes."""

    @abstractmethod
    def share(self, part: Rows, rows: Sequence[int]) -> tuple[Tensor, dict[str, float]]:
        """What a part adds to the loss of a step on `rows`, and to the step's other metrics."""

    @abstractmethod
    def measured(self) -> dict[str, float]:
        """Metrics on what is held out, under names that begin with `eval/`; every process calls it."""

    def conclude(self) -> None:
        """What every process does when training is over, before the main one writes what came of it."""

    def configure_optimizers(self) -> Any:
        """The optimizer, and a schedule that moves with its steps."""
        optimizer, schedule = self.stage.optimizer.build(self.trained, self.order.steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def train_dataloader(self) -> Passes:
        """The next step's rows."""
        # Lightning asks twice when it resumes, and counts the epoch of the checkpoint only after the first time.
        self.step = self.trainer.fit_loop.epoch_progress.current.processed + 1  # type: ignore[attr-defined]
        self.rows = self.order.of(self.step)
        passes = Passes(self.passes(self.rows))
        self.trainer.accumulate_grad_batches = len(passes)
        self._tally, self._made = {"loss": 0.0}, []
        self._began = time.perf_counter()
        self._each(lambda callback: callback.on_iteration_start(self, self.step))  # type: ignore[arg-type]
        return passes

    def passes(self, rows: Sequence[int]) -> list[Rows]:
        """This process's share of a step in parts, as many as every other's; what it has too few of is empty."""
        world = self.ranks.world
        ordered = sorted(rows, key=self.data.length) if world > 1 else rows  # so that shares are of similar lengths
        shares = [ordered[rank::world] for rank in range(world)]
        parts = [self.parts(self.data, share) if share else [] for share in shares]
        own = parts[self.ranks.rank]
        return own + [()] * (max(map(len, parts)) - len(own))

    def on_train_start(self) -> None:
        """Measure what there is before any step."""
        if self.begun_after:
            return
        self.metrics = {"epoch": 0.0, **self.held_out()}
        for callback in self.trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, StageCallback):
                callback.on_start_measured(self)

    def training_step(self, batch: Rows, index: int) -> Tensor:
        """A part's share of the loss, in which Lightning's division by the number of parts and of processes is undone.

        A process alone has it made by `backward`, and gives 0 here.
        """
        self._in_hand = batch
        if self.ranks.world == 1:
            return torch.zeros((), device=self.device, requires_grad=True)
        if not batch:
            return sum(weight.sum() * 0.0 for weight in self.parameters() if weight.requires_grad)  # type: ignore[return-value]
        return self._loss(batch) * self.trainer.accumulate_grad_batches * self.ranks.world

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        """The gradient of the part in hand.

        Where memory runs out, all parts of the step up to this one are made again in smaller ones: what failed may have
        added to some gradients.
        """
        if self.ranks.world > 1:
            super().backward(loss, *args, **kwargs)
            return
        self._made += self._in_hand
        fits = self.memory.allows(self.cost(self.data, self._in_hand))
        waiting = [self._in_hand] if fits else self.parts(self.data, self._in_hand)
        while waiting:
            part = waiting.pop(0)
            if tried(lambda part=part: self._pass(part)):  # type: ignore[misc]
                continue
            self.memory.lower(self.cost(self.data, part), divisible=len(part) > 1)
            for optimizer in self.trainer.optimizers:
                optimizer.zero_grad()
            self._tally = {"loss": 0.0}
            waiting = self.parts(self.data, self._made)

    def _pass(self, part: Rows) -> None:
        with self.trainer.precision_plugin.forward_context():
            loss = self._loss(part)
        scaler = getattr(self.trainer.precision_plugin, "scaler", None)
        (loss if scaler is None else scaler.scale(loss)).backward()

    def _loss(self, part: Rows) -> Tensor:
        """The part's share of the loss; it is counted."""
        loss, others = self.share(part, self.rows)
        for name, value in {"loss": float(loss.detach()), **others}.items():
            self._tally[name] = self._tally.get(name, 0.0) + value
        return loss

    def transfer_batch_to_device(self, batch: Rows, device: torch.device, dataloader_idx: int) -> Rows:
        """Rows are numbers; their tokens are moved when the pass is made."""
        return batch

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Note the gradient's norm before it is clipped. Raises `UserError` where it or the loss is not finite."""
        norm = float(total_norm(parameter for group in optimizer.param_groups for parameter in group["params"]))
        tallies = self.ranks.each(lambda: self._tally)
        names = dict.fromkeys(name for tally in tallies for name in tally)
        self._tally = {name: sum(tally.get(name, 0.0) for tally in tallies) for name in names}
        loss = self._tally["loss"]
        self._tally |= {"grad_norm": norm, "learning_rate": optimizer.param_groups[0]["lr"]}
        if finite([loss, norm]):
            return
        forget_gradients(optimizer)
        if not scale_too_large(self.trainer.precision_plugin, loss):
            what = f"the gradient's norm is {norm}" if math.isfinite(loss) else f"the loss is {loss}"
            raise UserError(f"step {self.step}: {what}; use a lower optimizer.lr, or trainer.precision=32-true")

    def on_train_epoch_end(self) -> None:
        """Close the step: its row of metrics."""
        for optimizer in self.trainer.optimizers:
            optimizer.zero_grad()
        seen = self.data.counted(self.rows)
        self.total_tokens += seen
        seconds = time.perf_counter() - self._began
        self.metrics = {
            "epoch": self.order.epochs_done(self.step),
            **self._tally,
            "num_tokens": self.total_tokens,
            "step_time": seconds,
            "perf/throughput": seen / seconds,
        }
        if self.order.measures(self.step, self.stage.evaluate_every):
            self.metrics |= self.held_out()
        self._each(lambda callback: callback.on_iteration_end(self, self.step))  # type: ignore[arg-type]

    @torch.no_grad()
    def held_out(self) -> dict[str, float]:
        """What is measured, in the precision of training."""
        with self.trainer.precision_plugin.forward_context():
            return self.measured()

    def over_held_out(self, work: Callable[[Rows], T]) -> list[tuple[Rows, T]]:
        """`work` on all held-out rows, in parts that are divided among the processes; each with what it gave."""
        own = range(len(self.held_out_data))[self.ranks.rank :: self.ranks.world]
        each = self.ranks.each(lambda: self._in_parts(own, work))
        return [made for share in each for made in share]

    def _in_parts(self, rows: Sequence[int], work: Callable[[Rows], T]) -> list[tuple[Rows, T]]:
        data, done = self.held_out_data, []
        waiting = self.parts(data, rows) if rows else []
        while waiting:
            self.on_pass()
            part = waiting.pop(0)
            found = tried(lambda part=part: work(part))  # type: ignore[misc]
            if found:
                done.append((part, found[0]))
                continue
            self.memory.lower(self.cost(data, part), divisible=len(part) > 1, ranks=self.ranks)
            waiting = self.parts(data, [row for each in (part, *waiting) for row in each])
        return done

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add what is counted, and what memory was found to hold."""
        checkpoint["tpg"] = {"total_tokens": self.total_tokens, "memory": self.memory.state()}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take it back."""
        self.total_tokens = checkpoint["tpg"]["total_tokens"]
        self.memory.restore(checkpoint["tpg"].get("memory"))

    def _each(self, tell: Callable[[IterationCallback], None]) -> None:
        for callback in self.trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, IterationCallback):
                tell(callback)


class StageCallback(IterationCallback):
    """A callback that is told of steps, and of what is measured before the first."""

    def on_start_measured(self, module: StageModule[Any]) -> None:
        """Before any step; `module.metrics` holds what was measured."""
