"""One model on one device: seconds of prefill, decoding and update, and which share of the machine that is."""

import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.curves.ours import composed
from benchmarks.device.options import GpuOptions
from benchmarks.device.setup import module_of, overrides, prepared_of, qwen3_policy, trainer_of
from tpg.planning.floor import Rates, Shape, floor_of, forward_flops, shape_of
from tpg.training.module import IterationCallback, TrajectoryPolicyGradient

PEAK_FLOPS = {"H100": 989e12, "H200": 989e12, "A100": 312e12, "L40S": 362e12, "L4": 121e12, "4090": 165e12}
"""Dense bf16 products a second by the makers' data sheets, by a part of the GPU's name."""


class OutOfTime(Exception):  # noqa: N818
    """The command's time is over."""


@dataclass(frozen=True)
class Clock:
    """When to stop."""

    end: float

    def check(self) -> None:
        """Raise `OutOfTime` after the end."""
        if time.monotonic() > self.end:
            raise OutOfTime

    @property
    def left(self) -> float:
        """Seconds."""
        return self.end - time.monotonic()


class Watch(IterationCallback):
    """Notes what each iteration took, and ends the run in time."""

    def __init__(self, clock: Clock, device: str) -> None:
        self.clock = clock
        self.device = device
        self.iterations: list[dict[str, float]] = []

    def on_iteration_start(self, module: TrajectoryPolicyGradient, iteration: int) -> None:
        """Start the clock, and the count of memory."""
        self.clock.check()
        synchronize(self.device)
        self.start = time.perf_counter()

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Stop where the time is over."""
        self.clock.check()

    def on_iteration_end(self, module: TrajectoryPolicyGradient, iteration: int) -> None:
        """Note it."""
        synchronize(self.device)
        whole = time.perf_counter() - self.start
        before = sum(module.metrics.get(f"timing_s/{stage}", 0.0) for stage in ("rollout", "reward", "estimate"))
        gaps = {name: value for name, value in module.metrics.items() if "logp_difference" in name}
        self.iterations.append({"iteration": whole, "update": whole - before, **gaps})


def synchronize(device: str) -> None:
    """Wait for the device."""
    if device == "cuda":
        torch.cuda.synchronize()


def peak_memory(device: str) -> int | None:
    """Bytes since the last call; None where it is not counted."""
    if device != "cuda":
        return None
    peak = torch.cuda.max_memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    return peak


def measure(
    size: str, engine_name: str, options: GpuOptions, device: str, rates: Rates, clock: Clock, update: bool
) -> dict[str, Any]:
    """One model with one engine; `update`: also two iterations of training, the second of which counts."""
    work = {name: getattr(options, name) for name in ("prompts", "prompt_tokens", "response_tokens")}
    given = overrides(
        engine_name,
        options.prompts,
        options.responses_per_prompt,
        options.prompt_tokens,
        options.response_tokens,
        options.precision,
        device == "cuda",
    )
    experiment = composed([*given, f"seed={options.seed}"])
    policy = qwen3_policy(size, device, options.seed, options.prompt_tokens + options.response_tokens)
    prepared = prepared_of(policy, options.prompts, options.prompt_tokens, options.seed)
    shape = shape_of(policy.model)
    peak_memory(device)
    record: dict[str, Any] = {"model": f"qwen3:{size}", "engine": engine_name, "parameters": shape.parameters}
    with (
        tempfile.TemporaryDirectory() as folder,
        prepared.reward_model(experiment) as reward_model,
        experiment.rollout.build(policy) as engine,
    ):
        watch = Watch(clock, device)
        trainer = trainer_of(experiment, Path(folder), 2, [watch])
        with trainer.precision_plugin.forward_context():
            record |= _generated(engine, prepared, experiment.rollout, clock.check, device)
        record["peak_memory_generate_bytes"] = peak_memory(device)
        record["note"] = engine.note
        if update:
            module = module_of(experiment, engine, prepared, reward_model)
            with module.collector:
                trainer.fit(module)
            record |= {"update_s": watch.iterations[-1]["update"], "iteration_s": watch.iterations[-1]["iteration"]}
            record["log_prob_gap"] = {key: v for key, v in watch.iterations[-1].items() if "logp" in key}
            record["peak_memory_train_bytes"] = peak_memory(device)
    responses = options.prompts * options.responses_per_prompt
    gpu = torch.cuda.get_device_name() if device == "cuda" else None
    return record | shares(record, shape, rates, options.precision, responses=responses, gpu=gpu, **work)


def _generated(engine: Any, prepared: Any, rollout: Any, on_step: Callable[[], None], device: str) -> dict[str, Any]:
    """Seconds of one token a response, which is little more than the prefill, and of all; after a warm-up of each."""
    from dataclasses import replace

    prefixes = prepared.training.draw(1, rollout)

    def seconds(tokens: int) -> float:
        asked = [replace(prefix, max_tokens=tokens) for prefix in prefixes]
        synchronize(device)
        start = time.perf_counter()
        engine.generate(asked, rollout.sampling, on_step=on_step)
        synchronize(device)
        return time.perf_counter() - start

    seconds(2)
    prefill = min(seconds(1), seconds(1))
    return {"prefill_s": prefill, "decode_s": seconds(rollout.max_response_tokens) - prefill}


def shares(
    record: dict[str, Any],
    shape: Shape,
    rates: Rates,
    precision: str,
    *,
    prompts: int,
    prompt_tokens: int,
    responses: int,
    response_tokens: int,
    gpu: str | None = None,
) -> dict[str, Any]:
    """Use of the device's arithmetic and memory: model FLOPs of prefill and update, bytes that decoding must read.

    Bytes are those of the weights, each prompt's keys and values once, and each response's own, at every step.
    """
    kind = "bf16" if precision == "bf16-mixed" else "float32"
    sizes = {
        "prompts": prompts,
        "prompt_tokens": prompt_tokens,
        "responses": responses,
        "response_tokens": response_tokens,
    }
    least = floor_of(shape, rates, kind, **sizes)
    width = 2 if kind == "bf16" else 4
    read = sum(
        width
        * (
            shape.body_weights
            + shape.head_weights
            + 2.0 * shape.layers * shape.key_width * (prompts * prompt_tokens + responses * given)
        )
        for given in range(1, response_tokens)
    )
    told: dict[str, Any] = {
        "tokens_per_s": responses * response_tokens / (record["prefill_s"] + record["decode_s"]),
        "decode_bandwidth_share": read / record["decode_s"] / rates.bandwidth,
        "decode_floor_share": least.decode / record["decode_s"],
        "prefill_flops_share": least.prefill / record["prefill_s"],
    }
    if "update_s" in record:
        flops = 3.0 * forward_flops(shape, **sizes)
        told["update_flops_per_s"] = flops / record["update_s"]
        told["update_flops_share"] = told["update_flops_per_s"] / rates.flops[kind]
        peak = next((rate for name, rate in PEAK_FLOPS.items() if gpu and name in gpu), None)
        told["update_mfu_of_data_sheet"] = told["update_flops_per_s"] / peak if peak and kind == "bf16" else None
    return told
