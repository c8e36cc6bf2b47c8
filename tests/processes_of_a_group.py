"""A function run by several processes that exchange tensors (gloo), for tests."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing


def in_processes(world: int, function: Callable[..., Any], *arguments: Any, timeout_s: float = 400.0) -> list[Any]:
    """What `function(*arguments)` returns on each rank. One that fails is raised with its traceback; all are ended."""
    with tempfile.TemporaryDirectory() as folder:
        given = (world, folder, function, arguments, timeout_s)
        context = torch.multiprocessing.start_processes(_work, given, world, join=False, start_method="spawn")
        try:
            deadline = time.monotonic() + timeout_s
            while not context.join(timeout=max(0.1, deadline - time.monotonic())):
                if time.monotonic() > deadline:
                    raise TimeoutError(f"{function.__name__} took {world} processes more than {timeout_s} s")
        finally:
            for process in context.processes:
                if process.is_alive():
                    process.kill()
                process.join()
        return [torch.load(Path(folder) / str(rank), weights_only=False) for rank in range(world)]


def _work(
    rank: int, world: int, folder: str, function: Callable[..., Any], arguments: tuple[Any, ...], timeout_s: float
) -> None:
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(world), "LOCAL_RANK": str(rank)}
    store = f"file://{folder}/store"
    dist.init_process_group(
        "gloo", init_method=store, rank=rank, world_size=world, timeout=timedelta(seconds=timeout_s)
    )
    result = function(*arguments)
    torch.save(result, Path(folder) / str(rank))
    dist.barrier()
    dist.destroy_process_group()
