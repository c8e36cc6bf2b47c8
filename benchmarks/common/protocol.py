"""The worker's end of the conversation: a line of JSON in, a line of JSON out. Plain Python.

The first line in is the workload; the first line out says that the model is loaded. Each further line in asks for one
iteration (`{"do": "iteration", ...}`) or the end (`{"do": "stop"}`), and each line out tells of an iteration.
"""

import json
import os
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Any

from benchmarks.common.workload import Workload


class Stopped(Exception):  # noqa: N818
    """No more iterations are wanted."""


class Channel:
    """Lines in and out; whatever else is printed goes to stderr."""

    def __init__(self) -> None:
        self._out = os.fdopen(os.dup(1), "w", buffering=1)
        os.dup2(2, 1)

    def request(self) -> dict[str, Any]:
        """Wait for the next. Raises `Stopped` for the last."""
        line = sys.stdin.readline()
        asked: dict[str, Any] = json.loads(line) if line.strip() else {"do": "stop"}
        if asked["do"] == "stop":
            raise Stopped
        return asked

    def answer(self, **fields: Any) -> None:
        """Say it."""
        self._out.write(json.dumps(fields) + "\n")
        self._out.flush()


class Lap:
    """The clock of one iteration, stages by name."""

    def __init__(self, synchronize: Callable[[], None]) -> None:
        self.synchronize = synchronize
        self.seconds: dict[str, float] = {}
        synchronize()
        self._start = time.perf_counter()

    def add(self, stage: str, seconds: float) -> None:
        """A stage took so long."""
        self.seconds[stage] = self.seconds.get(stage, 0.0) + seconds

    def finish(self) -> dict[str, float]:
        """Seconds of generation, rewards, the whole, and of the update: whatever was neither of the former."""
        self.synchronize()
        whole = time.perf_counter() - self._start
        generate, reward = self.seconds.get("generate", 0.0), self.seconds.get("reward", 0.0)
        return {"generate": generate, "reward": reward, "update": whole - generate - reward, "iteration": whole}


def served(work: Callable[[Any, Channel], None], read: Callable[[str], Any] = Workload.from_json) -> None:
    """Run a worker on what it is told until it is stopped; an exception is told in its answer and in its log."""
    channel = Channel()
    with suppress(OSError):  # if memory runs out it is the worker that goes, not its neighbours
        Path("/proc/self/oom_score_adj").write_text("1000")
    try:
        work(read(sys.stdin.readline()), channel)
    except Stopped:
        pass
    except Exception as error:
        traceback.print_exc()
        channel.answer(error=" ".join(f"{type(error).__name__}: {error}".split())[:500])
        sys.exit(1)


def versions(*packages: str) -> dict[str, str]:
    """Of installed packages and of Python."""
    return {"python": sys.version.split()[0], **{package: metadata.version(package) for package in packages}}


def peak_memory() -> int:
    """Bytes: the most that this process and each that it has started have had resident, summed."""
    if not Path("/proc/self/status").exists():
        import resource

        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    return sum(_peak(pid) for pid in _family(os.getpid()))


def _family(pid: int) -> list[int]:
    children: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            parent = int(stat.read_text().rpartition(")")[2].split()[1])
            children.setdefault(parent, []).append(int(stat.parent.name))
    found = [pid]
    for member in found:
        found += children.get(member, [])
    return found


def _peak(pid: int) -> int:
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:  # it has ended since it was listed
        return 0
    line = next((line for line in status.splitlines() if line.startswith("VmHWM")), "VmHWM: 0 kB")
    return int(line.split()[1]) * 1024
