"""Scoring in processes that can be killed."""

import concurrent.futures
import fcntl
import functools
import multiprocessing
import os
import pickle
import resource
import signal
import sys
import textwrap
import threading
import traceback
from collections.abc import Callable, Sequence
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from itertools import product
from multiprocessing.context import SpawnContext, SpawnProcess
from pathlib import Path
from types import ModuleType

import pebble

from tpg.rewards.base import Failure, RewardTerm, Sample, as_number, go_on

ATTEMPTS = 3
LARGEST = 3.4e38
"""Of a term's values: what single precision holds."""


class Job:
    """One term's value for one sample, under way in a pool of processes."""

    def __init__(self, sample: bytes, term: bytes, timeout_s: float) -> None:
        self.arguments = (term, sample)
        self.timeout_s = timeout_s
        self.pool: pebble.ProcessPool
        self.future: pebble.ProcessFuture

    def schedule(self, pool: pebble.ProcessPool) -> None:
        """Queue it."""
        self.pool = pool
        try:
            self.future = pool.schedule(_score, args=self.arguments, timeout=self.timeout_s)
        except RuntimeError:  # the pool is broken
            self.future = pebble.ProcessFuture()

    @property
    def lost(self) -> bool:
        """Whether it has no outcome of its own: its pool broke, or was closed."""
        if not self.future.done() or self.future.cancelled():
            return True
        return isinstance(self.future.exception(), BrokenProcessPool)


class Workers:
    """Processes that score; one whose term overstays its time-out is killed and replaced. Threads may share them.

    None of them may allocate more than `memory_gb` (Linux alone enforces it); None: no limit.
    """

    def __init__(self, terms: Sequence[RewardTerm], processes: int, memory_gb: float | None = None) -> None:
        self._terms = [(pickle.dumps(term), term.timeout_s) for term in terms]
        self._processes = processes
        self._memory_gb = memory_gb
        self._pool = self._new_pool()
        self._lock = threading.Lock()

    def submit(self, samples: Sequence[Sample]) -> list[Job]:
        """Begin with each term's value for every sample, sample by sample."""
        jobs = [Job(sample, term, limit) for sample, (term, limit) in product(map(pickle.dumps, samples), self._terms)]
        self._schedule(jobs)
        return jobs

    def outcomes(self, jobs: Sequence[Job], on_wait: Callable[[], None] = go_on) -> list[float | Failure]:
        """Wait for what was submitted, calling `on_wait` every second: finite values, or why there is none."""
        waited: Sequence[Job] = jobs
        # A process that dies before it has said what it works on breaks the pool, and all its open jobs are lost.
        for attempt in range(1, ATTEMPTS + 1):
            for pool in {job.pool for job in waited}:
                futures = [job.future for job in waited if job.pool is pool]
                while pool.active and concurrent.futures.wait(futures, timeout=1).not_done:
                    on_wait()
            waited = [job for job in waited if job.lost]
            if not waited:
                break
            self._replace({job.pool for job in waited})
            if attempt < ATTEMPTS:
                self._schedule(waited)
        dead = Failure("process died", "every process died at once")
        return [dead if job.lost else _outcome(job.future) for job in jobs]

    def close(self) -> None:
        """Kill the processes."""
        self._pool.stop()
        self._pool.join()

    def _new_pool(self) -> pebble.ProcessPool:
        terms = [term for term, _ in self._terms]
        initargs = (terms, self._memory_gb)
        return pebble.ProcessPool(self._processes, initializer=_start, initargs=initargs, context=_Context())

    def _schedule(self, jobs: Sequence[Job]) -> None:
        with self._lock:
            for job in jobs:
                job.schedule(self._pool)

    def _replace(self, broken: set[pebble.ProcessPool]) -> None:
        """Close the pool if it is one of these; another thread may have done so before."""
        with self._lock:
            if self._pool in broken:
                self.close()
                self._pool = self._new_pool()


def _outcome(future: pebble.ProcessFuture) -> float | Failure:
    try:
        return future.result()
    except TimeoutError as error:
        return Failure("timed out", f"no value within {error.args[1]:g} s")
    except pebble.ProcessExpired as error:
        return Failure("process died", f"exit code {error.exitcode}")


_starting = threading.Lock()


class _Process(SpawnProcess):
    """A process that starts without the parent's `__main__`, which may load torch or lack a guard, and without Ctrl-C.

    Who interrupts the run does not want every worker's traceback: the parent decides.
    """

    def start(self) -> None:
        with _starting:
            main = sys.modules["__main__"]
            blocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
            sys.modules["__main__"] = ModuleType("__main__")
            try:
                super().start()
            finally:
                sys.modules["__main__"] = main
                signal.pthread_sigmask(signal.SIG_SETMASK, blocked)


class _Context(SpawnContext):
    Process = _Process


# What follows runs in the processes.


_limit_gb: float | None = None


def _start(terms: Sequence[bytes], memory_gb: float | None) -> None:
    # Pebble's own handler waits for the interpreter, which a regular expression may keep for ever.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    # A scheduler sends this to every process of a job, to announce its end; the parent decides.
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    # A parent that was killed closes this pipe: the kernel then ends us, whatever we are busy with.
    parent = multiprocessing.parent_process()
    assert parent is not None
    fcntl.fcntl(parent.sentinel, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(parent.sentinel, fcntl.F_SETFL, os.O_ASYNC)
    if not parent.is_alive():
        os._exit(1)
    _limit_memory(memory_gb)
    for term in terms:
        with suppress(Exception):  # raised again, and reported, when the term scores
            _load(term).warm_up()


def _limit_memory(memory_gb: float | None) -> None:
    global _limit_gb
    _limit_gb = memory_gb
    # Where a machine has none left, Linux ends this process rather than the one that trains.
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")
    if memory_gb is not None:
        # Memory that can be written to: libraries reserve far more addresses than they ever use.
        hard = resource.getrlimit(resource.RLIMIT_DATA)[1]
        wanted = int(memory_gb * 2**30)
        resource.setrlimit(resource.RLIMIT_DATA, (wanted if hard < 0 else min(wanted, hard), hard))


@functools.cache
def _load(term: bytes) -> RewardTerm:
    return pickle.loads(term)


def _score(term: bytes, sample: bytes) -> float | Failure:
    try:
        value = as_number(_load(term).score(pickle.loads(sample)))
    except MemoryError:
        allowed = "" if _limit_gb is None else f" under reward_memory_gb={_limit_gb:g}"
        return Failure("out of memory", f"more memory than there is{allowed}")
    except BaseException as error:
        cause = traceback.format_exception_only(error)[-1]
        return Failure("raised", textwrap.shorten(cause, width=300))
    return value if abs(value) <= LARGEST else Failure("NaN", f"the value is {value}")
