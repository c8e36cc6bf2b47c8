"""The benchmark's end of the conversation: a long-lived process that does one iteration when asked."""

import json
import os
import queue
import subprocess
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

ROOT = Path(__file__).parents[2]
MEMORY_WORDS = ("out of memory", "not enough memory", "allocate memory", "memoryerror", "outofmemory")


class Asked(Protocol):
    """What a worker is told first, such as `benchmarks.common.workload.Workload`."""

    @property
    def threads(self) -> int:
        """Of the worker."""

    def to_json(self) -> str:
        """One line."""


class WorkerFailed(Exception):  # noqa: N818
    """A worker gave up; one line says why."""

    def __init__(self, message: str, out_of_memory: bool) -> None:
        super().__init__(message)
        self.out_of_memory = out_of_memory


class Worker:
    """A side of the comparison, loaded and idle between iterations."""

    def __init__(
        self, name: str, command: Sequence[str], workload: Asked, log: Path, timeout_s: float = 3600.0
    ) -> None:
        self.name = name
        self.workload = workload
        self.log = log
        self.timeout_s = timeout_s
        self._command = list(command)
        self._lines: queue.Queue[str | None] = queue.Queue()
        self.ready: dict[str, Any] = {}

    def __enter__(self) -> Self:
        """Start it and wait until it is loaded."""
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("w") as log:
            self._process = subprocess.Popen(
                self._command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env=environment(self.workload.threads),
            )
        threading.Thread(target=self._read, daemon=True).start()
        try:
            self._send(self.workload.to_json())
            self.ready = self._answer()
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop it; at once if something went wrong."""
        if error is None:
            try:
                self._send(json.dumps({"do": "stop"}))
                self._process.wait(timeout=30)
            except (WorkerFailed, subprocess.TimeoutExpired):
                pass
        self._end()

    def iteration(self, **asked: Any) -> dict[str, Any]:
        """One, and what is told of it. Raises `WorkerFailed`."""
        self._send(json.dumps({"do": "iteration", **asked}))
        return self._answer()

    def _send(self, line: str) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(line + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise self._died() from None

    def _answer(self) -> dict[str, Any]:
        try:
            line = self._lines.get(timeout=self.timeout_s)
        except queue.Empty:
            raise WorkerFailed(
                f"{self.name} gave no answer in {self.timeout_s:.0f} s; log: {self.log}", False
            ) from None
        if line is None:
            raise self._died()
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            told = str(answer["error"])
            raise WorkerFailed(f"{self.name}: {told}", any(word in told.lower() for word in MEMORY_WORDS))
        return answer

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._lines.put(line)
        self._lines.put(None)

    def _died(self) -> WorkerFailed:
        code = self._process.wait()
        if code == -9:
            return WorkerFailed(f"{self.name} was killed, as happens when memory runs out; log: {self.log}", True)
        last = (self.log.read_text(errors="replace").strip().splitlines() or ["nothing"])[-1]
        return WorkerFailed(f"{self.name} ended with code {code}, its last words: {last[:300]}; log: {self.log}", False)

    def _end(self) -> None:
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()


def environment(threads: int, base: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Of a worker: as many threads, which soon sleep when idle; modules from here; nothing is sent anywhere."""
    return {
        **base,
        "OMP_NUM_THREADS": str(threads),
        "OMP_WAIT_POLICY": "passive",
        "GOMP_SPINCOUNT": "2000",
        "TOKENIZERS_PARALLELISM": "false",
        "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), base.get("PYTHONPATH", "")])),
        "PYTHONUNBUFFERED": "1",
        "WANDB_MODE": "disabled",
        "TRL_EXPERIMENTAL_SILENCE": "1",
    }
