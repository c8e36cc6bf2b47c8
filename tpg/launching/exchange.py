"""The files by which a process and the ranks that it launched speak, and the threads and streams that tie them."""

import json
import os
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TextIO

POLL_S = 0.1


class Exchange:
    """A temporary folder, each file of which is whole or absent."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.job = folder / "job.json"
        self.stop = folder / "stop"
        """Holds the number of the signal that asked the run to stop."""
        self.agent = folder / "agent.json"
        """The processes that ended badly, by rank: exit code, and when, in whole seconds."""
        self._asked = 0
        self._answered = 0

    def outcome(self, rank: int) -> Path:
        """How a rank ended."""
        return self.folder / f"outcome-{rank}.json"

    def ask(self, iteration: int, value: float) -> bool:
        """Report a measured value to the launching process, and wait for its word whether the run should stop."""
        number, self._asked = self._asked, self._asked + 1
        write(self.folder / f"report-{number}.json", {"iteration": iteration, "value": value})
        answer = self.folder / f"answer-{number}.json"
        while not answer.exists():
            time.sleep(POLL_S / 2)
        return bool(read(answer)["stop"])

    def asked(self) -> tuple[int, float] | None:
        """The report that waits for an answer."""
        waiting = read(self.folder / f"report-{self._answered}.json")
        return (int(waiting["iteration"]), float(waiting["value"])) if waiting else None

    def answer(self, stop: bool) -> None:
        """Answer the report that waits."""
        write(self.folder / f"answer-{self._answered}.json", {"stop": stop})
        self._answered += 1


def write(path: Path, facts: Mapping[str, Any]) -> None:
    """Keep facts in a file that other processes read."""
    staging = path.with_suffix(f".{os.getpid()}.tmp")
    staging.write_text(json.dumps(facts), encoding="utf-8")
    staging.replace(path)


def read(path: Path) -> dict[str, Any]:
    """What a file holds; nothing if it is not there."""
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.exists() else {}


def end_with(parent: int) -> None:
    """End this process soon after its parent has ended in whatever way; `parent` is the id that it should have."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(POLL_S)
        os._exit(1)

    threading.Thread(target=watch, name="end-with-parent", daemon=True).start()


def keep_quiet(rank: int) -> None:
    """Leave stdout to the main process, and mark this one's lines on stderr."""
    sys.stdout.flush()
    silence = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silence, 1)
    os.close(silence)
    sys.stderr = Marked(sys.stderr, f"[rank {rank}] ")


class Marked:
    """A text stream that begins every line with a mark."""

    def __init__(self, stream: TextIO, mark: str) -> None:
        self._stream = stream
        self._mark = mark
        self._begins = True

    def write(self, text: str) -> int:
        """Write on, marked."""
        for line in text.splitlines(keepends=True):
            self._stream.write(f"{self._mark if self._begins else ''}{line}")
            self._begins = line.endswith("\n")
        return len(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)
