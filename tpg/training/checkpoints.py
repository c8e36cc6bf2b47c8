"""Checkpoints on iteration boundaries, each complete or absent."""

import os
import signal
from pathlib import Path
from types import FrameType
from typing import Any

from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch import LightningModule, Trainer

from tpg.errors import Interrupted
from tpg.training.module import IterationCallback, TrajectoryPolicyGradient
from tpg.training.options import Checkpointing
from tpg.training.run_folder import RunFolder


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes under a temporary name and renames, so that a killed run leaves no half checkpoint."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        """Write, flush to the disk, rename."""
        staging = Path(f"{path}.tmp")
        super().save_checkpoint(checkpoint, staging, storage_options)
        with staging.open("rb") as file:
            os.fsync(file.fileno())
        staging.replace(path)


class StopRequest:
    """Remembers that SIGTERM or SIGINT asked the run to stop; a second signal ends it at once.

    A sweep asks its runs, wherever they are, by a file that holds the signal's number.
    """

    def __init__(self, file: Path | None = None) -> None:
        self.signal: int | None = None
        self.file = file

    def install(self) -> None:
        """Listen for both signals."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._requested)

    def check(self) -> None:
        """Raise `Interrupted` if the run was asked to stop."""
        if self.signal is None and self.file is not None and self.file.exists():
            self.signal = int(self.file.read_text())
        if self.signal is not None:
            raise Interrupted(self.signal)

    def _requested(self, number: int, frame: FrameType | None) -> None:
        self.signal = number
        for other in (signal.SIGTERM, signal.SIGINT):
            signal.signal(other, signal.SIG_DFL)


class Checkpoints(IterationCallback):
    """Saves every so many iterations, after the last one, and when the run is asked to stop.

    A request during the rollout is met at once, with the boundary that the policy still stands on; one during the
    update when the iteration is complete.
    """

    def __init__(self, folder: RunFolder, options: Checkpointing, iterations: int, stop: StopRequest) -> None:
        self.folder = folder
        self.options = options
        self.iterations = iterations
        self.stop = stop
        self._ended = 0

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Listen after Lightning has begun to, whose own handler would leave in the middle of an iteration."""
        self.stop.install()

    def on_iteration_end(self, module: TrajectoryPolicyGradient, iteration: int) -> None:
        """Save if it is time."""
        self._ended = iteration
        if iteration % self.options.every == 0 or iteration == self.iterations or self.stop.signal is not None:
            self._save(module.trainer, iteration)
        self.stop.check()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Save the boundary that an interrupted rollout left untouched."""
        if isinstance(exception, Interrupted):
            # Lightning counts an epoch only after the hooks of its end, in one of which this may have been raised.
            self._save(trainer, max(trainer.current_epoch, self._ended))

    def _save(self, trainer: Trainer, iteration: int) -> None:
        path = self.folder.checkpoints / f"iteration-{iteration:06d}.ckpt"
        if not path.exists():
            trainer.save_checkpoint(path)
        for old in sorted(self.folder.checkpoints.glob("iteration-*.ckpt"))[: -self.options.keep_last]:
            old.unlink()
