"""Several processes of this machine that take trials of the same study."""

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from types import FrameType

from tpg.errors import Interrupted

WORKER = "TPG_SWEEP_WORKER"
"""Set in the processes that a sweep starts to run its trials."""


def is_worker() -> bool:
    """Whether this process was started to run trials, and leaves the rest to another."""
    return WORKER in os.environ


def share(jobs: int, arguments: Sequence[str], wants_traceback: bool) -> None:
    """Run the sweep's trials in so many processes. Raises `Interrupted` when told to stop, once they have ended."""
    environment = {**os.environ, WORKER: "1"}
    if not wants_traceback:
        environment.pop("HYDRA_FULL_ERROR", None)
    command = [sys.executable, "-m", "tpg.sweep", *arguments, "sweep.jobs=1"]
    workers = [subprocess.Popen(command, env=environment) for _ in range(jobs)]
    received: list[int] = []

    def forward(number: int, frame: FrameType | None) -> None:
        received.append(number)
        for worker in workers:
            worker.send_signal(number)

    listening = {number: signal.signal(number, forward) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        codes = [worker.wait() for worker in workers]
    finally:
        for number, handler in listening.items():
            signal.signal(number, handler)
    if received:
        raise Interrupted(received[0])
    ill = [code for code in codes if code]
    if ill:
        print(f"warning: {len(ill)} of {jobs} processes ended with code {ill[0]}", file=sys.stderr)
