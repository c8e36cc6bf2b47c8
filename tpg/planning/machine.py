"""The device that is planned for: its memory, and how fast it is."""

import os
from pathlib import Path

import torch

from tpg.errors import UserError
from tpg.planning.floor import Rates, measure
from tpg.planning.layout import Layout
from tpg.planning.options import Plan
from tpg.training.hardware import is_here
from tpg.training.trainer import TrainerOptions

MEASURED_FOR = 0.25
"""Seconds of each of three measurements."""


def device_of(plan: Plan, trainer: TrainerOptions) -> str:
    """The type of device that the run will take; a GPU that is asked for counts also where there is none."""
    if plan.device is not None:
        return plan.device
    if trainer.accelerator in ("gpu", "cuda") and trainer.device_type == "cpu":
        return "cuda"
    return trainer.device_type


def memory_here(device: str) -> float:
    """Bytes of a GPU, or those of the computer that are available."""
    if device == "cuda":
        return float(torch.cuda.get_device_properties(0).total_memory)
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return next(1024.0 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):
        return float(os.sysconf("SC_PAGE_SIZE")) * os.sysconf("SC_PHYS_PAGES")


def memory_of_device(plan: Plan, device: str, layout: Layout) -> tuple[float, str]:
    """Bytes of one device and where the number is from. Raises `UserError` for a device that is not here."""
    if plan.device_memory is not None:
        return plan.device_memory * 1e9, "as given"
    if not is_here(device):
        raise UserError("plan.device_memory: there is no GPU here to ask; give one's memory in GB, e.g. 80")
    if device == "cuda":
        return memory_here(device), torch.cuda.get_device_name(0)
    shared = layout.devices if device == "cpu" else 1
    return memory_here(device) / shared, "available here" + (f", shared by {shared} processes" if shared > 1 else "")


def rates_of(plan: Plan, device: str) -> tuple[Rates | None, str]:
    """How fast the device is and where the numbers are from; None where it is not here and they were not given."""
    flops, bandwidth = plan.matmul_tflops, plan.bandwidth
    if flops is not None and bandwidth is not None:
        return Rates(dict.fromkeys(("float32", "bf16"), flops * 1e12), bandwidth * 1e9), "as given"
    if device == "mps" or not is_here(device):
        return None, f"no {device} to measure here: give plan.matmul_tflops and plan.bandwidth"
    found = measure("gpu" if device == "cuda" else "cpu", torch.get_num_threads(), MEASURED_FOR)
    rates = Rates(
        found.flops if flops is None else dict.fromkeys(found.flops, flops * 1e12),
        found.bandwidth if bandwidth is None else bandwidth * 1e9,
    )
    return rates, "measured here"
