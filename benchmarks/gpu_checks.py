"""Whether a GPU computes what the CPU does: `python -m benchmarks.gpu_checks`. See `--help` and README.md.

Checks come in the order of their importance, and what is left when the time is over is skipped and said.
"""

import gc
import json
import sys
import time
from collections.abc import Callable
from functools import partial
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.checks.options import CheckOptions
from benchmarks.checks.outcome import Found, Part, shown
from benchmarks.common.arguments import parsed, recorded
from benchmarks.common.checks import new_folder
from tpg.errors import UserError, one_line, with_kind

if TYPE_CHECKING:
    from benchmarks.checks.subject import Subject

COMMAND = "python -m benchmarks.gpu_checks"
LEAST_SECONDS = 5.0
"""Of the time that must be left for a part to be begun."""
MAIN_ENGINES = ("native", "transformers")


class GpuChecks:
    """A run of the command: what it checks, and what it has found so far."""

    def __init__(self, options: CheckOptions, folder: Path, say: Callable[[str], None]) -> None:
        from benchmarks.checks.subject import Subject
        from benchmarks.common.checks import device_of
        from benchmarks.common.machine import machine

        device = device_of(options.device)
        self.end = time.monotonic() + 60 * options.minutes
        self.options = options
        self.device = "cuda" if device == "gpu" else "cpu"
        self.subject = Subject(options, self.device)
        self.path = folder / "gpu_checks.json"
        self.log = folder / "runs.log"
        self.say = say
        self.result: dict[str, Any] = {
            "benchmark": "gpu_checks",
            "options": recorded(options),
            "model": self.subject.model,
            "machine": machine(device),
            "versions": versions(self.device),
            "checks": [],
            "complete": False,
        }

    def run(self) -> None:
        """Every part in turn; written after each check."""
        from tpg.training.preparation import quiet_libraries

        quiet_libraries()
        of = self.result["machine"]
        self.say(f"{of['gpu'] or of['cpu']}, torch {self.result['versions']['torch']}, model {self.subject.model}")
        self.write()
        for part in parts(self.subject, self.log):
            self.try_part(part)
        self.result["complete"] = not any(check["status"] == "skipped" for check in self.checks)
        self.write()

    def try_part(self, part: Part) -> None:
        """Its checks until its time is over; one that raises has failed, and ends the part."""
        from benchmarks.device.measure import Clock, OutOfTime, peak_memory, synchronize

        begun = time.monotonic()
        left = self.end - begun
        peak_memory(self.device)  # counts anew

        def record(found: Found, status: str, reason: str) -> None:
            nonlocal begun
            if self.device == "cuda" and status != "skipped":
                synchronize(self.device)
            kept = {"status": status, "reason": reason, "figures": found.figures, "bounds": found.bounds}
            measured = {"seconds": time.monotonic() - begun, "peak_memory_bytes": peak_memory(self.device)}
            self.checks.append({"part": part.name, "check": found.name, **kept, **measured})
            self.say(f"{status:8} {found.name}" + (f": {reason}" if reason else ""))
            self.write()
            begun = time.monotonic()

        if left < LEAST_SECONDS:
            record(Found(part.name), "skipped", f"the {self.options.minutes:g} minutes are used up")
            return
        clock = Clock(begun + min(part.seconds, left))
        try:
            for found in part.checks(clock):
                problems = "; ".join(found.problems)
                record(
                    found, "skipped" if found.skipped else "failed" if problems else "passed", found.skipped or problems
                )
        except OutOfTime:
            whole = clock.end >= self.end - 1e-6
            over = f"the {self.options.minutes:g} minutes are" if whole else f"the part's {part.seconds:g} seconds are"
            record(Found(f"{part.name}, what is left"), "skipped", f"{over} used up")
        except Exception as error:
            told = with_kind(error)[:500]
            record(Found(part.name), "failed", told)
        self.tidy()

    def tidy(self) -> None:
        """Give memory back."""
        import torch

        gc.collect()
        if self.device == "cuda":
            torch.cuda.empty_cache()

    @property
    def checks(self) -> list[dict[str, Any]]:
        """What was found."""
        found: list[dict[str, Any]] = self.result["checks"]
        return found

    @property
    def failed(self) -> list[str]:
        """The names of checks that failed."""
        return [check["check"] for check in self.checks if check["status"] == "failed"]

    def write(self) -> None:
        """The figures so far."""
        self.path.write_text(json.dumps(self.result, indent=1) + "\n")


def parts(subject: "Subject", log: Path) -> list[Part]:
    """What the options ask for, the most important first."""
    from benchmarks.checks import engines, gradients, runs

    options = subject.options
    main = [name for name in MAIN_ENGINES if name in options.engines]
    others = [name for name in options.engines if name not in main]

    def of_engine(name: str, precision: str, seconds: float) -> tuple[str, Part]:
        checks = engines.float32_checks if precision == "float32" else engines.bf16_checks
        return "engines", Part(f"{name}, {precision}", seconds, partial(checks, subject, name))

    ordered = [
        *(of_engine(name, precision, 60) for name in main for precision in ("float32", "bf16")),
        ("objectives", Part("objectives", 240, partial(gradients.checks, subject))),
        ("runs", Part("continued run", 90, partial(runs.resumed, subject, log))),
        ("runs", Part("demo", 90, partial(runs.demo, subject, log))),
        *(of_engine(name, precision, 90) for name in others for precision in ("float32", "bf16")),
        ("strategies", Part("strategies", 120, partial(runs.strategies, subject, log))),
    ]
    return [part for group, part in ordered if group in options.parts]


def versions(device: str) -> dict[str, Any]:
    """Of what computes, and how torch multiplies float32."""
    import torch

    names = ("torch", "transformers", "lightning", *(["vllm"] if find_spec("vllm") else []))
    return {
        **{name: metadata.version(name) for name in names},
        "cuda": torch.version.cuda,
        "capability": list(torch.cuda.get_device_capability()) if device == "cuda" else None,
        "float32_matmul_precision": torch.get_float32_matmul_precision(),
    }


def table(checks: list[dict[str, Any]]) -> Any:
    """Every check in a row."""
    from rich.table import Table

    made = Table(box=None, pad_edge=False)
    for name in ("check", "", "figures, or why not", "s", "peak GiB"):
        made.add_column(name, justify="right" if name in ("s", "peak GiB") else "left", overflow="fold")
    colours = {"passed": "green", "failed": "red", "skipped": "yellow"}
    for check in checks:
        figures = {name: value for name, value in check["figures"].items() if not isinstance(value, dict)}
        text = check["reason"] or ", ".join(f"{name} {shown(value)}" for name, value in figures.items())
        memory = check["peak_memory_bytes"]
        status = f"[{colours[check['status']]}]{check['status']}[/]"
        peak = "" if memory is None else f"{memory / 2**30:.2f}"
        made.add_row(check["check"], status, text.replace("[", r"\["), f"{check['seconds']:.1f}", peak)
    return made


def main(arguments: list[str] | None = None) -> int:
    """The command; its exit code: 1 where a check failed, 2 for a mistake in the arguments."""
    from rich.console import Console

    try:
        options = parsed(sys.argv[1:] if arguments is None else arguments, CheckOptions, COMMAND)
        checks = GpuChecks(options, new_folder(options.run_dir, "gpu_checks"), lambda text: print(text, flush=True))
        checks.run()
    except UserError as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        return 2
    Console().print(table(checks.checks))
    count = {
        status: sum(check["status"] == status for check in checks.checks) for status in ("passed", "failed", "skipped")
    }
    print(", ".join(f"{number} {status}" for status, number in count.items()))
    print(f"figures   {checks.path}")
    return 1 if checks.failed or not count["passed"] else 0


if __name__ == "__main__":
    sys.exit(main())
