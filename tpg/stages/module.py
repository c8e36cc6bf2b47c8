"""The LightningModule of a stage: an epoch of Lightning's is one optimizer step, so that any step can be the last."""

from __future__ import annotations

import math
import time
from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn

from tpg.errors import UserError
from tpg.stages.options import Stage
from tpg.stages.order import Order
from tpg.training.faults.nonfinite import finite, forget_gradients, scale_too_large
from tpg.training.module import IterationCallback
from tpg.training.parallel.gradients import total_norm

Rows = tuple[int, ...]


class Passes:
    """The parts of one step, in as many passes."""

    def __init__(self, parts: Sequence[Rows]) -> None:
        self.parts = parts

    def __len__(self) -> int:
        return len(self.parts)

    def __iter__(self) -> Iterator[Rows]:
        return iter(self.parts)


class StageModule(LightningModule):
    """Trains on the rows of `Order`, a step at a time; what the loss is and what is measured is a subclass's.

    A step's loss is divided by a count of its rows or tokens that is fixed before they are cut into passes, so that the
    cut changes nothing.
    """

    def __init__(self, trained: nn.Module, order: Order, stage: Stage) -> None:
        super().__init__()
        self.trained = trained
        self.order = order
        self.stage = stage
        self.total_tokens = 0
        """That a loss was taken on, or read by a reward model, since the beginning."""
        self.begun_after = 0
        """The step after which this process goes on."""
        self.metrics: dict[str, float] = {}
        self.on_pass: Callable[[], None] = lambda: None
        """Called before each pass over held-out rows; may raise to end the run."""
        self._tally: dict[str, float] = {}
        self._began = 0.0

    @abstractmethod
    def parts(self, rows: Sequence[int]) -> list[Rows]:
        """The rows in parts that fit into memory together."""

    @abstractmethod
    def share(self, part: Rows, rows: Sequence[int]) -> tuple[Tensor, dict[str, float]]:
        """What a part adds to the loss of a step on `rows`, and to the step's other metrics."""

    @abstractmethod
    def tokens(self, rows: Sequence[int]) -> int:
        """How many tokens count as seen."""

    @abstractmethod
    def measured(self) -> dict[str, float]:
        """Metrics on what is held out, under names that begin with `eval/`."""

    def configure_optimizers(self) -> Any:
        """The optimizer, and a schedule that moves with its steps."""
        optimizer, schedule = self.stage.optimizer.build(self.trained, self.order.steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def train_dataloader(self) -> Passes:
        """The next step's rows."""
        # Lightning asks twice when it resumes, and counts the epoch of the checkpoint only after the first time.
        self.step = self.trainer.fit_loop.epoch_progress.current.processed + 1  # type: ignore[attr-defined]
        self.rows = self.order.of(self.step)
        passes = Passes(self.parts(self.rows))
        self.trainer.accumulate_grad_batches = len(passes)
        self._tally = {"loss": 0.0}
        self._began = time.perf_counter()
        self._each(lambda callback: callback.on_iteration_start(self, self.step))  # type: ignore[arg-type]
        return passes

    def on_train_start(self) -> None:
        """Measure what there is before any step."""
        if self.begun_after:
            return
        self.metrics = {"epoch": 0.0, **self.held_out()}
        for callback in self.trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, StageCallback):
                callback.on_start_measured(self)

    def training_step(self, batch: Rows, index: int) -> Tensor:
        """A part's share of the loss, in which Lightning's division by the number of parts is undone."""
        loss, others = self.share(batch, self.rows)
        for name, value in {"loss": float(loss.detach()), **others}.items():
            self._tally[name] = self._tally.get(name, 0.0) + value
        return loss * self.trainer.accumulate_grad_batches

    def transfer_batch_to_device(self, batch: Rows, device: torch.device, dataloader_idx: int) -> Rows:
        """Rows are numbers; their tokens are moved when the pass is made."""
        return batch

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Note the gradient's norm before it is clipped. Raises `UserError` where it or the loss is not finite."""
        norm = float(total_norm(parameter for group in optimizer.param_groups for parameter in group["params"]))
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
        seen = self.tokens(self.rows)
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

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add what is counted."""
        checkpoint["tpg"] = {"total_tokens": self.total_tokens}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take it back."""
        self.total_tokens = checkpoint["tpg"]["total_tokens"]

    def _each(self, tell: Callable[[IterationCallback], None]) -> None:
        for callback in self.trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, IterationCallback):
                tell(callback)


class StageCallback(IterationCallback):
    """A callback that is told of steps, and of what is measured before the first."""

    def on_start_measured(self, module: StageModule) -> None:
        """Before any step; `module.metrics` holds what was measured."""
