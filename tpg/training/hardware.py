"""Which precision a policy is fastest in on this machine, by a measurement of a fraction of a second."""

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any, Literal

import torch
from torch import nn
from torch.nn.functional import linear

from tpg.training.run_folder import write_atomically

PrecisionName = Literal["auto", "32-true", "bf16-mixed", "16-mixed", "bf16-true"]

SMALL = 2**18
"""Weights. A policy none of whose layers has so many is for tests and lessons, where exact numbers count for more."""
MARGIN = 1.2
"""How many times as fast bfloat16 must be to be chosen."""
HOPELESS = 0.5
"""Of a few rows: where bfloat16 is this slow, it is emulated, and more rows would take long."""
SECONDS = 0.3
"""About what the measurement may take."""
LARGEST = 2048
"""Rows and columns of a weight that are measured at most."""


def is_here(device: str) -> bool:
    """Whether this machine has such a device: cpu, cuda or mps."""
    return {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}[device]


@dataclass(frozen=True)
class Precision:
    """Lightning's name of a precision, and why it was chosen."""

    name: PrecisionName
    because: str
    bfloat16_speed: float | None = None
    """float32's time over bfloat16's, where both were measured."""

    @classmethod
    def read(cls, path: Path) -> "Precision":
        """As it was written."""
        return cls(**json.loads(path.read_text(encoding="utf-8")))

    def write(self, path: Path) -> None:
        """To a file, whole or not at all."""
        write_atomically(path, json.dumps(asdict(self), indent=2) + "\n")

    @property
    def note(self) -> str:
        """The choice in a line."""
        return f"trainer.precision=auto: {self.name}, {self.because}"


def fastest_precision(policy: nn.Module, device: str, clock: Callable[[], float] = time.perf_counter) -> Precision:
    """The precision to train and generate in on a device of this type (cpu, cuda, mps)."""
    shapes = layer_shapes(policy)
    if max((rows * columns for rows, columns in shapes), default=0) < SMALL:
        return Precision("32-true", "exact, as a policy this small is quick either way")
    if device == "cuda":
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return Precision("bf16-mixed", "which this GPU has")
        return Precision("32-true", "as this GPU has no bfloat16")
    if device != "cpu":
        return Precision("32-true", f"as bfloat16 is not measured on {device}")
    speed = bfloat16_speed(shapes, clock)
    because = f"as matrices of this policy's shapes multiply {speed:.1f} times as fast in bfloat16 as in float32"
    return Precision("bf16-mixed" if speed >= MARGIN else "32-true", because, round(speed, 2))


def layer_shapes(policy: nn.Module) -> list[tuple[int, int]]:
    """The shapes of the matrices that every token is multiplied with, each once, without the output layer's."""
    model: Any = getattr(policy, "model", policy)
    output = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    matrices = (
        weight
        for layer in policy.modules()
        if not isinstance(layer, nn.Embedding) and layer is not output
        for weight in layer.parameters(recurse=False)
        if weight.ndim >= 2
    )
    return sorted({(weight.shape[-2], weight.shape[-1]) for weight in matrices})


@torch.no_grad()
def bfloat16_speed(shapes: list[tuple[int, int]], clock: Callable[[], float] = time.perf_counter) -> float:
    """float32's time over bfloat16's for one product with a weight of each shape: a median of alternated pairs."""
    sizes = [(min(rows, LARGEST), min(columns, LARGEST)) for rows, columns in shapes]
    weights = {
        dtype: [torch.full(size, 0.01, dtype=dtype) for size in sizes] for dtype in (torch.float32, torch.bfloat16)
    }

    def seconds(dtype: torch.dtype, tokens: int) -> float:
        inputs = [torch.full((tokens, columns), 0.01, dtype=dtype) for _, columns in sizes]
        begun = clock()
        for given, weight in zip(inputs, weights[dtype], strict=True):
            linear(given, weight)
        return clock() - begun

    speed = 1.0
    for tokens in (8, 256):
        seconds(torch.float32, tokens), seconds(torch.bfloat16, tokens)  # the first call sets up its kernels
        begun = clock()
        ratios: list[float] = []
        while len(ratios) < 3 or (len(ratios) < 15 and clock() - begun < SECONDS / 2):
            ratios.append(seconds(torch.float32, tokens) / seconds(torch.bfloat16, tokens))
        speed = median(ratios)
        if speed < HOPELESS:
            break
    return speed
