"""Both sides loaded, taking turns."""

import sys
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.common.workers import Worker, WorkerFailed
from benchmarks.common.workload import Workload, unequal_work
from benchmarks.iteration.comparison import Side

TRIED = (8, 16, 32)
"""Micro-batches that `trl_microbatch=auto` tries."""


class UnequalWork(Exception):  # noqa: N818
    """A side did something else than it was asked; the figures would not be comparable."""


@dataclass(frozen=True)
class Commands:
    """How sides are started, in the order of their turns."""

    by_side: Mapping[str, list[str]]
    logs: Path
    timeout_s: float
    step: Callable[[str], None]
    """Called after every iteration, and with what comes next."""

    @classmethod
    def of(
        cls, sides: list[str], trl: Path | None, logs: Path, timeout_s: float, step: Callable[[str], None]
    ) -> "Commands":
        """This interpreter for our side, `trl` for TRL's."""
        python = {"ours": sys.executable, "trl": str(trl)}
        by_side = {side: [python[side], "-m", f"benchmarks.iteration.{side}"] for side in sides}
        return cls(by_side, logs, timeout_s, step)

    def worker(self, side: str, workload: Workload, name: str) -> Worker:
        """Not started yet."""
        return Worker(side, self.by_side[side], workload, self.logs / f"{name}-{side}.log", self.timeout_s)


def measured(
    commands: Commands, workloads: Mapping[str, Workload], repeats: int, name: str
) -> tuple[dict[str, Side], dict[str, dict[str, Any]]]:
    """Each side's counted iterations, in turns after one of each that is not counted, and what each told of itself.

    A side that fails keeps its error and takes no more turns.
    """
    sides = {side: Side(microbatch=workload.responses_per_microbatch) for side, workload in workloads.items()}
    ready: dict[str, dict[str, Any]] = {}
    with ExitStack() as running:
        workers = {}
        for side, workload in workloads.items():
            commands.step(f"{name}: {side} loads")
            try:
                workers[side] = running.enter_context(commands.worker(side, workload, name))
                ready[side] = workers[side].ready
            except WorkerFailed as failure:
                _note(sides[side], failure)
        for turn in range(repeats + 1):
            for side, worker in workers.items():
                if sides[side].error is not None:
                    continue
                commands.step(f"{name}: {side}, " + (f"iteration {turn} of {repeats}" if turn else "warm-up"))
                try:
                    told = worker.iteration()
                except WorkerFailed as failure:
                    _note(sides[side], failure)
                    continue
                difference = unequal_work(workloads[side], told["work"])
                if difference is not None:
                    raise UnequalWork(f"{name}, {side}: {difference}")
                if turn:
                    sides[side].runs.append(told)
    return sides, ready


def _note(side: Side, failure: WorkerFailed) -> None:
    side.error, side.out_of_memory = str(failure), failure.out_of_memory


def trl_rows(responses: int, wanted: int) -> int:
    """The largest micro-batch up to `wanted` that divides the responses, as TRL needs it."""
    return max(rows for rows in range(1, min(wanted, responses) + 1) if responses % rows == 0)


def best_trl_rows(commands: Commands, workload: Workload) -> tuple[int, dict[int, float | None]]:
    """TRL's fastest micro-batch, and the seconds of an iteration with each that was tried; None where it failed."""
    seconds: dict[int, float | None] = {}
    for rows in sorted({trl_rows(workload.responses, rows) for rows in TRIED}):
        tried = replace(workload, responses_per_microbatch=rows)
        name = f"{workload.method}-microbatch-{rows}"
        only = Commands({"trl": commands.by_side["trl"]}, commands.logs, commands.timeout_s, commands.step)
        medians = measured(only, {"trl": tried}, 1, name)[0]["trl"].medians()
        seconds[rows] = medians["iteration"] if medians else None
    done = {rows: value for rows, value in seconds.items() if value is not None}
    return (min(done, key=lambda rows: done[rows]) if done else min(seconds)), seconds
