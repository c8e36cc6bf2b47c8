"""What `tpg.plan` is told beyond the experiment."""

from typing import Literal

from pydantic import Field

from tpg.component import component


@component
class Plan:
    """The machine to plan for, and how long prompts and responses are; None: this machine, the longest there may be."""

    device: Literal["cpu", "cuda", "mps"] | None = None
    """None: what the trainer takes."""
    device_memory: float | None = Field(default=None, gt=0)
    """Of one device, GB (10^9 bytes)."""
    matmul_tflops: float | None = Field(default=None, gt=0)
    """What matrix products reach in the precision of the run, 10^12 FLOP/s."""
    bandwidth: float | None = Field(default=None, gt=0)
    """Of reading memory, GB/s."""
    prompt_tokens: int | None = Field(default=None, ge=1)
    """None: `rollout.max_prompt_tokens`."""
    response_tokens: int | None = Field(default=None, ge=1)
    """None: `rollout.max_response_tokens`."""
    margin: float = Field(default=0.1, ge=0, lt=1)
    """Part of the device's memory that must stay free: for fragments, and for what the estimate leaves out."""
    generation_efficiency: float = Field(default=0.29, gt=0, le=1)
    """The machine's limit over the time that generation takes; 0.29 was measured on two CPU cores."""
    update_efficiency: float = Field(default=0.52, gt=0, le=1)
    """The same of the update; 0.52 was measured there."""


@component
class Planning:
    """What `conf/plan.yaml` adds to an experiment."""

    plan: Plan
