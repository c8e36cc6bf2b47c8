"""One iteration here and in TRL, the same work, in turns: `python -m benchmarks.step`. See `--help` and README.md."""

import json
import signal
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from benchmarks.common.arguments import parsed, recorded
from benchmarks.common.workload import Workload
from benchmarks.iteration.options import StepOptions
from tpg.errors import UserError, one_line

COMMAND = "python -m benchmarks.step"


class Bench:
    """A run of the command: what it measures, and what it has measured so far."""

    def __init__(self, options: StepOptions, folder: Path, step: Callable[[str], None], say: Callable[[str], None]):
        from benchmarks.common.checks import device_of, engine_of
        from benchmarks.common.machine import cores, machine
        from benchmarks.common.models import model_folder
        from benchmarks.common.trl_environment import python_with_trl
        from benchmarks.iteration.options import check_sweeps
        from benchmarks.iteration.turns import Commands
        from tpg.planning import floor

        check_sweeps(options)
        self.folder = folder
        self.rollout = engine_of(options.rollout)
        trl = python_with_trl(options.trl, say) if options.side == "both" else None
        self.commands = Commands.of(options.sides, trl, folder / "logs", options.timeout_s, step)
        device = device_of(options.device)
        model_folder(options.model)
        self.options = replace(options, device=device, threads=options.threads or cores(), rollout=self.rollout)
        say("measuring the machine")
        self.rates = floor.measure(device, self.options.threads or 1)
        if options.precision == "auto":
            faster = self.rates.flops["bf16"] > 1.2 * self.rates.flops["float32"]
            self.options = replace(self.options, precision="bf16" if faster else "float32")
        self.result: dict[str, Any] = {
            "benchmark": "step",
            **dict.fromkeys(("ratio_iteration", "ratio_generate", "ratio_update", "ratio_peak_memory")),
            "gradient_cosine": None,
            "workload": recorded(self.options),
            "machine": machine(device),
            "rates": asdict(self.rates),
            "engine": None,
            "versions": {},
            "notes": [],
            "methods": {},
            "gradients": {},
            "sweeps": {},
        }
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"run_dir={folder}: cannot be made: {error.strerror}") from error

    def workloads(self, options: StepOptions, method: str) -> dict[str, Workload]:
        """What each side is asked to do."""
        from benchmarks.common.models import model_folder, random_prompts
        from benchmarks.iteration.turns import best_trl_rows, trl_rows

        model = model_folder(options.model)
        ours = Workload(
            method=method,
            model=model,
            prompts=random_prompts(model, options.prompts, options.prompt_tokens, options.seed),
            responses_per_prompt=options.responses_per_prompt,
            response_tokens=options.response_tokens,
            responses_per_microbatch=options.microbatch,
            precision=options.precision,
            device=options.device,
            threads=options.threads or 1,
            seed=options.seed,
            rollout=self.rollout,
            overrides=tuple(options.overrides),
        )
        if options.side == "ours":
            return {"ours": ours}
        if options.trl_microbatch == "auto":
            rows, seconds = best_trl_rows(self.commands, ours)
            self.note(f"TRL's micro-batch {rows} was the fastest of {seconds}")
        else:
            rows = trl_rows(ours.responses, options.trl_microbatch)
        return {"trl": replace(ours, responses_per_microbatch=rows), "ours": ours}

    def measure(self, options: StepOptions, method: str, name: str) -> dict[str, Any]:
        """A workload's record."""
        from benchmarks.iteration.comparison import told
        from benchmarks.iteration.turns import measured
        from tpg.planning.floor import Shape, floor_of

        sides, ready = measured(self.commands, self.workloads(options, method), options.repeats, name)
        for side, answer in ready.items():
            self.result["versions"][side] = answer["versions"]
            if "rollout" in answer:
                self.result["engine"] = answer["rollout"]
            if answer.get("note"):
                self.note(f"rollout: {answer['note']}")
        least = None
        if "ours" in ready:
            least = floor_of(
                Shape(**ready["ours"]["shape"]),
                self.rates,
                options.precision,
                prompts=options.prompts,
                prompt_tokens=options.prompt_tokens,
                responses=options.prompts * options.responses_per_prompt,
                response_tokens=options.response_tokens,
            )
        return told(sides, least)

    def compare(self) -> None:
        """Every method; the first one's ratios stand at the top."""
        for method in self.options.methods:
            record = self.result["methods"][method] = self.measure(self.options, method, method)
            if method == self.options.methods[0]:
                self.result |= {f"ratio_{name}": value for name, value in record["ratios"].items()}
            self.write()

    def compare_gradients(self) -> None:
        """Every method's, and the lowest cosine."""
        from benchmarks.common.workers import WorkerFailed
        from benchmarks.iteration.gradients import compared_gradients

        for method in self.options.methods:
            try:
                found = compared_gradients(self.commands, method, self.rollout, self.options.seed)
            except WorkerFailed as failure:
                found = {"error": str(failure)}
            self.result["gradients"][method] = found
        cosines = [found["cosine"] for found in self.result["gradients"].values() if "cosine" in found]
        self.result["gradient_cosine"] = min(cosines, default=None)
        self.write()

    def sweep(self) -> None:
        """The first method as one key grows; a side that ran out of memory is not tried on more."""
        for sweep in self.options.sweep:
            key, values = self.options.points(sweep)
            points: list[dict[str, Any]] = []
            self.result["sweeps"][sweep] = {"key": key, "points": points}
            options = self.options
            for value in values:
                options = replace(options, **{key: value})
                record = self.measure(
                    options, options.methods[0], f"{sweep}-{value}".replace(":", "-").replace("/", "-")
                )
                points.append({"value": value, **record})
                self.write()
                if record.get("trl", {}).get("out_of_memory"):
                    self.note(f"sweep={sweep}: TRL ran out of memory at {key}={value}; beyond that it is not tried")
                    options = replace(options, side="ours")
                if record["ours"]["out_of_memory"]:
                    self.note(f"sweep={sweep}: our side ran out of memory at {key}={value}; the sweep ends")
                    break

    def note(self, text: str) -> None:
        """Keep what a reader of the figures must know, once."""
        if text not in self.result["notes"]:
            self.result["notes"].append(text)

    def write(self) -> None:
        """What is known so far, as JSON and as a picture."""
        from benchmarks.iteration.picture import draw

        path = self.folder / "step.json"
        staging = path.with_suffix(".tmp")
        staging.write_text(json.dumps(self.result, indent=2) + "\n")
        staging.replace(path)
        draw(self.folder / "step.png", self.result)

    @property
    def failed(self) -> list[str]:
        """Errors outside of sweeps, where running out of memory is a finding."""
        records = [
            record[side] for record in self.result["methods"].values() for side in ("trl", "ours") if side in record
        ]
        found = [record["error"] for record in records if record["error"]]
        return found + [gradient["error"] for gradient in self.result["gradients"].values() if "error" in gradient]


def run(options: StepOptions) -> Bench:
    """Measure, showing how far it is; print the tables."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    from benchmarks.common.checks import free_folder

    console = Console(soft_wrap=True)
    points = sum(len(options.points(sweep)[1]) for sweep in options.sweep)
    both = options.side == "both"
    total = (len(options.methods) + points) * (options.repeats + 2) * (2 if both else 1)
    total += 2 * len(options.methods) * (both and options.gradients)
    columns = TextColumn("{task.description}"), BarColumn(bar_width=24), MofNCompleteColumn(), TimeElapsedColumn()
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("", total=total)
        done = iter(range(-1, 10**9))

        def step(text: str) -> None:
            bar.update(task, description=text, completed=max(0, next(done)))
            if not console.is_terminal:
                console.print(text, highlight=False)

        def say(text: str) -> None:
            console.print(text, highlight=False, markup=False)

        bench = Bench(options, free_folder(options.run_dir, "step"), step, say)
        if both and options.gradients:
            bench.compare_gradients()
        bench.compare()
        bench.sweep()
        bench.write()
    show(bench, console)
    return bench


def show(bench: Bench, console: Any) -> None:
    """The tables, and where the files are."""
    from benchmarks.iteration.table import sweep_table, table_of

    for method, record in bench.result["methods"].items():
        console.print(table_of(f"{method}, {bench.options.precision}, {bench.options.threads} threads", record))
    for sweep in bench.result["sweeps"].values():
        console.print(sweep_table(sweep["key"], sweep["points"]))
    if bench.result["gradient_cosine"] is not None:
        console.print(
            f"cosine of our gradient and TRL's: 1 - {1 - bench.result['gradient_cosine']:.1e}", highlight=False
        )
    for note in bench.result["notes"]:
        console.print(f"note: {note}", highlight=False, markup=False)
    for error in bench.failed:
        console.print(f"failed: {error}", highlight=False, markup=False)
    console.print(f"figures   {bench.folder / 'step.json'}\npicture   {bench.folder / 'step.png'}", highlight=False)


def main(arguments: list[str] | None = None) -> int:
    """The command; its exit code."""
    from benchmarks.iteration.turns import UnequalWork

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # an exit, so that workers are ended
    try:
        bench = run(parsed(sys.argv[1:] if arguments is None else arguments, StepOptions, COMMAND))
    except UserError as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; what was measured so far is in step.json", file=sys.stderr)
        return 130
    except UnequalWork as error:
        print(f"error: the sides did not do the same work: {error}", file=sys.stderr)
        return 1
    return 1 if bench.failed else 0


if __name__ == "__main__":
    sys.exit(main())
