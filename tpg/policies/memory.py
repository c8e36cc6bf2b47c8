"""Whether memory ran out, and letting go of what was allocated when it did."""

from collections.abc import Callable
from typing import TypeVar

import torch

T = TypeVar("T")

SAYINGS = ("DefaultCPUAllocator: can't allocate memory", "out of memory", "CUBLAS_STATUS_ALLOC_FAILED")
"""How torch says it where it has no class of its own for it: on a CPU, on MPS, from a library."""


def ran_out(error: BaseException) -> bool:
    """Whether memory was too small, on a CPU or a device."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(saying in str(error) for saying in SAYINGS)


def tried(work: Callable[[], T]) -> list[T]:
    """What it returns, in a list; nothing where memory ran out. What it had allocated is free then."""
    try:
        return [work()]
    except (RuntimeError, MemoryError) as error:
        if not ran_out(error):
            raise
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()
    return []
