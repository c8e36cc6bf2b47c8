"""When checkpoints are written, always on iteration boundaries, and how a run is asked to stop."""

import signal
import time
from pathlib import Path
from types import FrameType
from typing import Any

from lightning.pytorch import LightningModule, Trainer

from tpg.errors import Interrupted
from tpg.rewards.model import RewardModel
from tpg.training.checkpoint_files import FoundCheckpoints
from tpg.training.guards import GuardStop
from tpg.training.module import IterationCallback, TrajectoryPolicyGradient
from tpg.training.options import Checkpointing
from tpg.training.parallel.ranks import Ranks
from tpg.training.run_folder import RunFolder


class StopRequest:
    """Remembers that SIGTERM, SIGINT or SIGUSR1 asked the run to stop; a second of the first two ends it at once.

    A sweep, or the process that launched a rank, asks by a file that holds the signal's number.
    """

    def __init__(self, file: Path | None = None) -> None:
        self.signal: int | None = None
        self.since = 0.0
        """When this process heard of it, seconds of the monotonic clock."""
        self.file = file

    def install(self) -> None:
        """Listen for the signals; SIGUSR1 is SLURM's, when a job's time is nearly up."""
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
            signal.signal(number, self._requested)

    def asked(self) -> int | None:
        """The signal that asked this process to stop, if one did."""
        if self.signal is None and self.file is not None and self.file.exists():
            self._note(int(self.file.read_text()))
        return self.signal

    def check(self) -> None:
        """Raise `Interrupted` if the run was asked to stop."""
        if self.asked() is not None:
            raise Interrupted(self.signal)

    def overdue(self, seconds: float | None) -> bool:
        """Whether SIGTERM asked, after which a SIGKILL must be expected, and so many seconds have gone by."""
        if seconds is None or self.asked() != signal.SIGTERM:
            return False
        return time.monotonic() - self.since >= seconds

    def _note(self, number: int) -> None:
        self.signal, self.since = number, time.monotonic()

    def _requested(self, number: int, frame: FrameType | None) -> None:
        self._note(number)
        if number == signal.SIGUSR1:  # SLURM's SIGTERM follows
            return
        for other in (signal.SIGTERM, signal.SIGINT):
            signal.signal(other, signal.SIG_DFL)


class Checkpoints(IterationCallback):
    """Saves every so many iterations, after the last one, and when the run is asked to stop.

    A request while responses are generated or scored is met at once, with the boundary that the policy still stands on;
    one during the update when the iteration is complete, or without a new checkpoint where that would take too long.
    """

    def __init__(
        self,
        folder: RunFolder,
        options: Checkpointing,
        iterations: int,
        stop: StopRequest,
        ranks: Ranks | None = None,
        found: FoundCheckpoints | None = None,
    ) -> None:
        self.folder = folder
        self.options = options
        self.iterations = iterations
        self.stop = stop
        self.ranks = ranks or Ranks()
        self._complete = set(found.complete) if found else set()
        self._ended = 0
        self._updating = False

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Let a wait for rewards hear of a request to stop: a judge may take hours."""
        rewards = pl_module.collector.reward_model if isinstance(pl_module, TrajectoryPolicyGradient) else None
        if isinstance(rewards, RewardModel):
            rewards.interrupt_with(self.stop.check)

    def on_iteration_start(self, module: TrajectoryPolicyGradient, iteration: int) -> None:
        """Listen in place of Lightning, whose handler would end the process in the middle of an update, code 0."""
        # Lightning begins to listen after the hooks of the fit's start, and only the first iteration comes before those
        # of the training's.
        if self.stop.signal is None:
            self.stop.install()

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Leave an update that would take too long to complete after a request to stop."""
        self._updating = True
        limit = self.options.stop_within_s
        if limit is not None and self.ranks.any(self.stop.overdue(limit)):
            raise Interrupted(signal.SIGTERM)

    def on_iteration_end(self, module: TrajectoryPolicyGradient, iteration: int) -> None:
        """Save if it is time."""
        self._ended = iteration
        self._updating = False
        signals = self.ranks.each(self.stop.asked)
        self.stop.signal = next((number for number in signals if number is not None), None)
        if iteration % self.options.every == 0 or iteration == self.iterations or self.stop.signal is not None:
            self._save(module.trainer, iteration)
        self.stop.check()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Save the boundary that an interrupted rollout left untouched, or that a guard stopped at."""
        if isinstance(exception, Interrupted | GuardStop) and not self._updating:
            # Lightning counts an epoch only after the hooks of its end, in one of which this may have been raised.
            self._save(trainer, max(trainer.current_epoch, self._ended))

    def _save(self, trainer: Trainer, iteration: int) -> None:
        path = self.folder.checkpoints / f"iteration-{iteration:06d}.ckpt"
        if path in self._complete:
            return
        self.folder.flush()
        trainer.save_checkpoint(path)
        kept = sorted(self._complete | {path})[-self.options.keep_last :]
        self._complete = set(kept)
        if self.ranks.main:
            for old in self.folder.checkpoints.glob("iteration-*.ckpt"):
                if old not in self._complete:
                    old.unlink()
