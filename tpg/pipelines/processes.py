"""A stage's process: its output passed through, signals passed on, and never longer-lived than the pipeline."""

import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import FrameType

from tpg.errors import Interrupted

PASSED_ON = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
PR_SET_PDEATHSIG = 1


def run_stage(command: Sequence[str], lock: int, variables: Mapping[str, str], output: Path | None = None) -> int:
    """Run a stage to its end; its exit code. What it prints goes through, and into `output` too where that is given.

    It holds the descriptor `lock` while it lives. Raises `Interrupted` when this process was told to stop, once the
    stage has ended.
    """
    received: list[int] = []
    processes: list[subprocess.Popen[str]] = []

    def forward(number: int, frame: FrameType | None) -> None:
        received.append(number)
        for process in processes:
            process.send_signal(number)

    sys.stdout.flush()
    sys.stderr.flush()
    listening = {number: signal.signal(number, forward) for number in PASSED_ON}
    try:
        # A session of its own: Ctrl-C reaches this process alone, which passes it on once.
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=None if output is None else subprocess.PIPE,
            text=True,
            start_new_session=True,
            pass_fds=(lock,),
            preexec_fn=_stops_with(os.getpid()),
            env=dict(variables),
        )
        processes.append(process)
        for number in received[:1]:
            process.send_signal(number)
        if output is not None:
            _through(process, output)
        code = process.wait()
    finally:
        for number, handler in listening.items():
            signal.signal(number, handler)
    if received:
        raise Interrupted(received[0])
    return code


def _through(process: "subprocess.Popen[str]", output: Path) -> None:
    """Pass on what the process prints, and keep it."""
    assert process.stdout is not None
    with process.stdout as lines, output.open("w", encoding="utf-8") as kept:
        for line in lines:
            sys.stdout.write(line)
            sys.stdout.flush()
            kept.write(line)


def _stops_with(parent: int) -> Callable[[], None] | None:
    """What a Linux process does first so that it is told to stop when its parent ends, in whatever way."""
    if sys.platform != "linux":
        return None
    prctl = ctypes.CDLL(None).prctl

    def ask() -> None:
        prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:
            os.kill(os.getpid(), signal.SIGTERM)

    return ask
