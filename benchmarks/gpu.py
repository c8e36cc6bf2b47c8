"""An iteration on one GPU beside what the GPU could do: `python -m benchmarks.gpu`. See `--help` and README.md.

It prints as it goes, keeps what is measured when its time is over, and survives a model that does not fit.
"""

import gc
import json
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from importlib import metadata
from pathlib import Path
from typing import Any

from benchmarks.common.arguments import parsed, recorded
from benchmarks.common.checks import new_folder
from benchmarks.common.workers import MEMORY_WORDS
from benchmarks.device.options import GpuOptions
from tpg.errors import UserError, one_line, with_kind

COMMAND = "python -m benchmarks.gpu"
TINY: dict[str, Any] = {
    "models": ["tiny"],
    "prompts": 2,
    "responses_per_prompt": 2,
    "prompt_tokens": 8,
    "response_tokens": 8,
}
LEAST_SECONDS = 10.0
"""Of the time that must be left for something more to be begun."""


class GpuBench:
    """A run of the command: what it measures, and what it has measured so far."""

    def __init__(self, options: GpuOptions, folder: Path, say: Callable[[str], None]) -> None:
        from benchmarks.common.checks import device_of
        from benchmarks.common.machine import machine
        from benchmarks.device.measure import Clock

        device = device_of(options.device)
        self.clock = Clock(time.monotonic() + 60 * options.minutes)
        self.device = "cuda" if device == "gpu" else "cpu"
        self.options = replace(options, device=device, **(TINY if options.tiny else {}))
        self.path = folder / "gpu.json"
        self.say = say
        self.result: dict[str, Any] = {
            "benchmark": "gpu",
            "options": recorded(self.options),
            "machine": machine(device),
            "versions": {name: metadata.version(name) for name in ("torch", "transformers", "lightning")},
            "rates": None,
            "checks": {},
            "measured": [],
            "complete": False,
        }

    def run(self) -> None:
        """Rates, checks, then every model with every engine; written after each."""
        from benchmarks.common.machine import cores
        from benchmarks.device.measure import OutOfTime
        from tpg.planning import floor
        from tpg.training.preparation import quiet_libraries

        quiet_libraries()
        self.write()
        self.say("measuring the machine")
        self.rates = floor.measure(self.result["options"]["device"], cores())
        self.result["rates"] = asdict(self.rates)
        flops = self.rates.flops
        self.say(
            f"bf16 {flops['bf16'] / 1e12:.3g} TFLOP/s, float32 {flops['float32'] / 1e12:.3g} TFLOP/s,"
            f" memory {self.rates.bandwidth / 1e9:.4g} GB/s"
        )
        try:
            if self.options.checks:
                self.check()
            for size in self.options.models:
                for engine in self.options.engines:
                    self.measure(size, engine, update=engine == self.options.engines[0])
            self.result["complete"] = True
        except OutOfTime:
            self.say("the time is over; what was measured is kept")
        self.write()

    def check(self) -> None:
        """Correctness on a tiny model."""
        from benchmarks.device.checks import checked, checks

        for name, check in checks(self.device, self.options.engines, self.options.seed):
            self.clock.check()
            found = self.result["checks"][name] = checked(check)
            figures = ", ".join(f"{key} {value}" for key, value in found.items() if key != "passed")
            self.say(f"{'passed' if found['passed'] else 'FAILED'}  {name}: {figures}")
            self.write()

    def measure(self, size: str, engine: str, update: bool) -> None:
        """One model with one engine; out of memory is a result, and so is another failure."""
        import torch

        from benchmarks.device.measure import OutOfTime, measure

        if self.clock.left < LEAST_SECONDS:
            raise OutOfTime
        begun = time.monotonic()
        over = False
        record: dict[str, Any] = {"model": f"qwen3:{size}", "engine": engine}
        try:
            record = measure(size, engine, self.options, self.device, self.rates, self.clock, update)
        except OutOfTime:
            over = True
            record["error"] = "out of time"
        except Exception as error:
            told = with_kind(error)[:500]
            memory = isinstance(error, MemoryError) or any(word in told.lower() for word in MEMORY_WORDS)
            record["error"] = "out of memory" if memory else told
        record["wall_s"] = time.monotonic() - begun
        self.result["measured"].append(record)
        gc.collect()
        if self.device == "cuda":
            torch.cuda.empty_cache()
        self.say(line_of(record))
        self.write()
        if over:
            raise OutOfTime

    def write(self) -> None:
        """The figures so far."""
        self.path.write_text(json.dumps(self.result, indent=1) + "\n")

    @property
    def failed(self) -> list[str]:
        """Checks that failed, and errors that are not for want of memory or time."""
        expected = (None, "out of memory", "out of time")
        errors = [record["error"] for record in self.result["measured"] if record.get("error") not in expected]
        return [*(name for name, found in self.result["checks"].items() if not found["passed"]), *errors]


def line_of(record: dict[str, Any]) -> str:
    """A record in a line."""
    named = f"{record['model']} {record['engine']}: "
    if "error" in record:
        return f"{named}{record['error']} after {record['wall_s']:.0f} s"
    parts = [
        f"{record['tokens_per_s']:.5g} tokens/s",
        f"prefill {record['prefill_s']:.3g} s ({record['prefill_flops_share']:.0%} of the matmul rate)",
        f"decode {record['decode_s']:.3g} s ({record['decode_bandwidth_share']:.0%} of the bandwidth)",
    ]
    if "update_s" in record:
        parts.append(f"update {record['update_s']:.3g} s ({record['update_flops_share']:.0%} of the matmul rate)")
        gap = next(iter(record["log_prob_gap"].values()), None)
        parts.append(f"log-prob gap {gap:.2g}" if gap is not None else "no log-prob gap")
    memory = record.get("peak_memory_train_bytes") or record["peak_memory_generate_bytes"]
    if memory is not None:
        parts.append(f"peak {memory / 2**30:.1f} GiB")
    return named + ", ".join(parts)


def main(arguments: list[str] | None = None) -> int:
    """The command; its exit code."""
    try:
        options = parsed(sys.argv[1:] if arguments is None else arguments, GpuOptions, COMMAND)
        bench = GpuBench(options, new_folder(options.run_dir, "gpu"), lambda text: print(text, flush=True))
        bench.run()
    except UserError as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        return 2
    print(f"figures   {bench.path}")
    return 1 if bench.failed else 0


if __name__ == "__main__":
    sys.exit(main())
