"""What a measurement was made on."""

import os
import platform
import subprocess
from datetime import datetime
from pathlib import Path
from typing import Any


def cores() -> int:
    """That this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def machine(device: str) -> dict[str, Any]:
    """Processor, memory, GPU, system, date, commit, and how busy it was."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else 0
    return {
        "kind": kind(device),
        "cpu": _cpu(),
        "cores": cores(),
        "memory_bytes": memory,
        "gpu": _gpu() if device == "gpu" else None,
        "system": platform.platform(),
        "date": datetime.now().astimezone().isoformat(timespec="seconds"),
        "load_average": list(os.getloadavg()),
        "commit": _commit(),
    }


def kind(device: str) -> str:
    """A short name for file names: the GPU's, or how many cores."""
    if device == "gpu":
        return "-".join(_gpu().lower().split())
    return f"cpu-{cores()}-cores"


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def _gpu() -> str:
    import torch

    return torch.cuda.get_device_name()


def _commit() -> str | None:
    """Of the checkout, with a plus where it has changes; None outside of one."""

    def git(*words: str) -> str:
        folder = Path(__file__).parent
        return subprocess.run(["git", *words], cwd=folder, capture_output=True, text=True, check=True).stdout.strip()

    try:
        return git("rev-parse", "--short", "HEAD") + ("+" if git("status", "--porcelain", "-uno") else "")
    except (OSError, subprocess.CalledProcessError):
        return None
