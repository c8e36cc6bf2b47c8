"""The processes that run one experiment together.

Every process holds the whole iteration's trajectories, so that what is computed from all of them needs no special case:
processes divide the work that costs (generation, scoring, forward and backward passes) and exchange its results here.
"""

from __future__ import annotations

import itertools
import os
import pickle
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist

from tpg.errors import Interrupted, UserError

T = TypeVar("T")


class RankError(RuntimeError):
    """Another process failed; its message says which and why."""


@dataclass(frozen=True)
class Failed:
    """What stands for the result of a process that raised."""

    error: Exception

    def raised_on(self, rank: int, own: int) -> Exception:
        """What process `own` raises for it: the failure itself where it happened or where all should end alike."""
        if rank == own or isinstance(self.error, UserError | Interrupted):
            self.error.__dict__["known_to_all"] = True
            return self.error
        return RankError(f"rank {rank}: {type(self.error).__name__}: {self.error}")


@dataclass(frozen=True)
class Ranks:
    """This process among those of the run; one alone unless more were started.

    Successive ranks hold the parts of one replica of a model that is split by tensor parallelism.
    """

    rank: int = 0
    world: int = 1
    tensor_parallel: int = 1

    @property
    def main(self) -> bool:
        """Whether this process writes and speaks for all."""
        return self.rank == 0

    @property
    def replicas(self) -> int:
        """Into how many parts forward and backward passes are divided."""
        return self.world // self.tensor_parallel

    @property
    def replica(self) -> int:
        """Which of those parts is this process's."""
        return self.rank // self.tensor_parallel

    def shares(self, count: int) -> list[range]:
        """Every process's places of `count` in a row; shares differ by one at most and may be empty."""
        ends = [count * rank // self.world for rank in range(self.world + 1)]
        return [range(start, end) for start, end in itertools.pairwise(ends)]

    def own(self, items: Sequence[T]) -> list[T]:
        """This process's share of what all have in the same order."""
        share = self.shares(len(items))[self.rank]
        return list(items[share.start : share.stop])

    def each(self, work: Callable[[], T]) -> list[T]:
        """Every process's result in order of rank; what one raises ends all."""
        if self.world == 1:
            return [work()]
        mine: T | Failed
        try:
            mine = work()
        except Exception as error:
            mine = Failed(error)
            if not _can_be_sent(error):
                mine = Failed(RuntimeError(f"{type(error).__name__}: {error}").with_traceback(error.__traceback__))
        return self._exchanged(mine)

    def each_replica(self, work: Callable[[], T]) -> list[T]:
        """One result of every replica of the model, whose processes agree on it."""
        return self.each(work)[:: self.tensor_parallel]

    def together(self, work: Callable[[], T]) -> T:
        """This process's own result, which may be nothing to send; what one raises ends all."""
        kept: list[T] = []
        self.each(lambda: kept.append(work()))
        return kept[0]

    def from_main(self, work: Callable[[], T]) -> T:
        """What the main process finds, on every process."""
        return self.each(lambda: work() if self.main else None)[0]  # type: ignore[return-value]

    def any(self, flag: bool) -> bool:
        """Whether it holds anywhere."""
        return any(self.each(lambda: flag))

    def _exchanged(self, mine: T | Failed) -> list[T]:
        found: list[T | Failed] = [mine] * self.world
        try:
            dist.all_gather_object(found, mine)
        except Exception as error:  # the others are elsewhere, or gone
            if not isinstance(mine, Failed):
                raise
            raise mine.error from error
        results: list[T] = []
        for rank, result in enumerate(found):
            if isinstance(result, Failed):
                raise result.raised_on(rank, self.rank)
            results.append(result)
        return results


def _can_be_sent(error: Exception) -> bool:
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return False
    return True


def started_together() -> int:
    """How many processes this one was started with, by torchrun or by a SLURM step; 1 alone."""
    if "WORLD_SIZE" in os.environ:
        return int(os.environ["WORLD_SIZE"])
    # SLURM_NTASKS is seen by a batch script too, which runs once; a step's count by what srun starts.
    return int(os.environ.get("SLURM_STEP_NUM_TASKS", "1")) if "SLURM_PROCID" in os.environ else 1


def joined(device: str, tensor_parallel: int, timeout_s: float) -> Ranks:
    """Join the processes that this one was started with; every exchange fails when another keeps silent too long."""
    world = started_together()
    if world == 1:
        return Ranks()
    _from_slurm()
    if not dist.is_initialized():
        backend = "cpu:gloo,cuda:nccl" if device == "cuda" else "gloo"
        if device == "cuda":
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        dist.init_process_group(backend, timeout=timedelta(seconds=timeout_s))
    return Ranks(dist.get_rank(), dist.get_world_size(), tensor_parallel)


def left() -> None:
    """Leave them at the end."""
    if dist.is_initialized():
        dist.destroy_process_group()


def _from_slurm() -> None:
    """The variables that torch and Lightning read, from those of a SLURM step."""
    if "WORLD_SIZE" in os.environ:
        return
    from lightning.fabric.plugins.environments import SLURMEnvironment

    given = os.environ
    nodes = given.get("SLURM_STEP_NODELIST") or given["SLURM_NODELIST"]
    os.environ |= {
        "MASTER_ADDR": SLURMEnvironment.resolve_root_node_address(nodes),
        "MASTER_PORT": given.get("MASTER_PORT", str(15000 + int(given["SLURM_JOB_ID"][-4:]))),
        "WORLD_SIZE": given["SLURM_STEP_NUM_TASKS"],
        "RANK": given["SLURM_PROCID"],
        "LOCAL_RANK": given["SLURM_LOCALID"],
        "NODE_RANK": given["SLURM_NODEID"],
    }
