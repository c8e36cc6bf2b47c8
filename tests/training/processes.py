"""Runs of `python -m tpg.train` in processes of their own, for tests."""

import csv
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

TINY = [
    "policy=tiny",
    "policy.hidden_size=32",
    "policy.layers=2",
    "task=sort",
    "reward_model=[sorted_digits,length]",
    "reward_model.length.target_tokens=6",
    "logger=[csv]",
    "trainer=cpu",
    "reward_workers=1",
    "rollout.prompts=4",
    "rollout.responses_per_prompt=4",
    "rollout.max_response_tokens=10",
    "rollout.max_prompt_tokens=32",
    "optimizer.lr=1e-3",
    "evaluation.every=2",
    "evaluation.prompts=8",
]


VARIABLES = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive", "HF_HUB_OFFLINE": "1"}


def start(folder: Path, *overrides: str) -> subprocess.Popen:
    """A run that has begun; its output goes to `<folder>.log`."""
    environment = {**os.environ, **VARIABLES}
    log = folder.with_name(folder.name + ".log")
    with log.open("a") as output:
        command = [sys.executable, "-m", "tpg.train", *overrides]
        return subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=environment)


def finish(process: subprocess.Popen, folder: Path, code: int = 0) -> None:
    """Wait for the run to end with this exit code."""
    try:
        given = process.wait(timeout=180)
    finally:
        process.kill()
    assert given == code, folder.with_name(folder.name + ".log").read_text()[-3000:]


def train(folder: Path, *overrides: str, code: int = 0) -> Path:
    """A whole run."""
    finish(start(folder, f"run_dir={folder}", *overrides), folder, code)
    return folder


def resume(folder: Path, *overrides: str, code: int = 0) -> Path:
    """Continue a run to its end."""
    finish(start(folder, f"resume={folder}", *overrides), folder, code)
    return folder


def interrupted(
    folder: Path, overrides: list[str], number: signal.Signals, when: Callable[[Path], bool], delay: float = 0.0
) -> Path:
    """A run that is sent a signal once `when(folder)` holds, and has ended."""
    process = start(folder, f"run_dir={folder}", *overrides)
    deadline = time.monotonic() + 180
    while process.poll() is None and not when(folder) and time.monotonic() < deadline:
        time.sleep(0.002)
    time.sleep(delay)
    process.send_signal(number)
    expected = {signal.SIGKILL: -9, signal.SIGTERM: 143, signal.SIGINT: 130}[number]
    finish(process, folder, expected)
    return folder


def rows(folder: Path) -> list[dict[str, str]]:
    """The run's metrics, as text."""
    path = folder / "metrics.csv"
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def has_rows(count: int) -> Callable[[Path], bool]:
    """Whether the run has written at least so many iterations."""
    return lambda folder: len(rows(folder)) >= count


def reproducible(folder: Path) -> list[dict[str, str]]:
    """The metrics but for what a clock says."""
    clock = ("timing_s/", "step_time", "perf/")
    return [{name: value for name, value in row.items() if not name.startswith(clock)} for row in rows(folder)]
