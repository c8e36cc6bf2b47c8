"""Wall-clock to a target reward, here and in TRL: `python -m benchmarks.learning`. See `--help` and README.md.

Both sides start from the same weights with the same prompts, reward function and hyper-parameters, and take turns
iteration by iteration, so that a busy machine slows both. Loading and the warm start are not counted.
"""

import json
import sys
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from benchmarks.common.arguments import parsed, recorded
from benchmarks.common.checks import new_folder
from benchmarks.curves.curves import Curve, summary
from benchmarks.curves.options import SETTINGS, LearningOptions
from benchmarks.curves.task import LearningTask
from tpg.errors import UserError, one_line

COMMAND = "python -m benchmarks.learning"


def made_task(name: str, options: LearningOptions, seed: int, folder: Path) -> LearningTask:
    """The task with its policy, warm-started where the experiment says so and saved in the folder."""
    from benchmarks.common.models import model_folder
    from benchmarks.curves.ours import composed
    from tpg.training.hardware import fastest_precision
    from tpg.training.preparation import prepare
    from tpg.training.warm_start import warm_start

    given = [f"experiment={name}", f"algorithm={options.method}", f"seed={seed}", "logger=[]"]
    experiment = composed([*given, *SETTINGS[name], *options.setting])
    prepared = prepare(experiment)
    policy = prepared.policy
    if experiment.warm_start.steps:
        limit = experiment.rollout.max_prompt_tokens
        warm_start(policy, experiment.task, experiment.warm_start, experiment.seed, limit, lambda loss: None)
        model = folder / "models" / f"{name}-{seed}"
        policy.save(model)
    else:
        model = Path(model_folder("smollm2"))
    precision = options.precision
    if precision == "auto":
        fastest = fastest_precision(policy, "cuda" if options.device == "gpu" else "cpu")
        precision = "bf16" if fastest.name == "bf16-mixed" else "float32"
    rollout, prompts = experiment.rollout, prepared.training.prompts
    responses = rollout.prompts * rollout.responses_per_prompt
    return LearningTask(
        name=name,
        method=options.method,
        model=str(model),
        prompts=prompts.token_ids,
        answers=tuple(str(example.answer) for example in prompts.examples),
        prompts_per_iteration=rollout.prompts,
        responses_per_prompt=rollout.responses_per_prompt,
        response_tokens=rollout.max_response_tokens,
        trl_microbatch=min(experiment.update.responses_per_microbatch or responses, responses),
        learning_rate=experiment.optimizer.lr,
        betas=experiment.optimizer.betas,
        clip=experiment.trainer.gradient_clip_val,
        precision=precision,
        device=options.device,
        threads=options.threads or 1,
        seed=seed,
        rollout=options.rollout,
        overrides=tuple(options.overrides),
    )


class Learning:
    """A run of the command: what it measures, and what it has measured so far."""

    def __init__(self, options: LearningOptions, folder: Path, say: Callable[[str], None]) -> None:
        from benchmarks.common.checks import device_of, engine_of
        from benchmarks.common.machine import cores, machine
        from benchmarks.common.trl_environment import python_with_trl

        rollout, device = engine_of(options.rollout), device_of(options.device)
        trl = python_with_trl(options.trl, say) if options.side == "both" else None
        python = {"ours": sys.executable, "trl": str(trl)}
        self.commands = {side: [python[side], "-m", f"benchmarks.curves.{side}"] for side in options.sides}
        self.options = replace(options, rollout=rollout, device=device, threads=options.threads or cores())
        self.folder = folder
        self.say = say
        self.result: dict[str, Any] = {
            "benchmark": "learning",
            "method": options.method,
            "target": options.target,
            "window": options.window,
            "options": recorded(self.options),
            "machine": machine(device),
            "versions": {},
            "notes": [],
            "tasks": {},
        }

    def measure(self) -> None:
        """Every task, seed by seed; what is measured is written at once."""
        for name in self.options.tasks:
            record: dict[str, Any] = {"setting": None, "runs": [], "summary": {}}
            self.result["tasks"][name] = record
            for seed in range(self.options.seeds):
                self.say(f"{name}, seed {seed}: the policy that both sides start from")
                task = made_task(name, self.options, seed, self.folder)
                if record["setting"] is None:
                    hidden = ("prompts", "answers", "model", "seed")
                    setting = {key: value for key, value in asdict(task).items() if key not in hidden}
                    record["setting"] = {**setting, "overrides_of_experiment": SETTINGS[name]}
                record["runs"] += [curve.told() for curve in self.side_by_side(task).values()]
                record["summary"] = summary(record["runs"])
                self.write()

    def side_by_side(self, task: LearningTask) -> dict[str, Curve]:
        """One seed of every side, in turns until each has reached the target or its bounds."""
        from benchmarks.common.workers import Worker, WorkerFailed

        options = self.options
        curves = {side: Curve(side, task.seed, options.target, options.window) for side in self.commands}
        with ExitStack() as running:
            workers: dict[str, Worker] = {}
            for side, command in self.commands.items():
                log = self.folder / "logs" / f"{task.name}-{task.seed}-{side}.log"
                try:
                    workers[side] = running.enter_context(Worker(side, command, task, log, options.timeout_s))
                    self._told_of_itself(side, workers[side].ready)
                except WorkerFailed as failure:
                    curves[side].error = str(failure)
            limit = options.iterations(task.name)
            while left := [side for side in workers if not curves[side].finished(limit, options.max_minutes)]:
                for side in left:
                    try:
                        curves[side].add(workers[side].iteration())
                    except WorkerFailed as failure:
                        curves[side].error = str(failure)
                self._progress(task, {side: curves[side] for side in left})
        for side, curve in curves.items():
            at = curve.reached_at
            end = f"{curve.seconds[at - 1]:.1f} s, {at} iterations" if at else curve.error or "not reached"
            self.say(f"{task.name}, seed {task.seed}: {side} {end}")
        return curves

    def _told_of_itself(self, side: str, ready: Mapping[str, Any]) -> None:
        self.result["versions"][side] = ready["versions"]
        if ready["note"] and ready["note"] not in self.result["notes"]:
            self.result["notes"].append(ready["note"])

    def _progress(self, task: LearningTask, curves: Mapping[str, Curve]) -> None:
        shown = [
            f"{side} {len(curve.reward)}: {curve.reward[-1]:.2f} after {curve.seconds[-1]:.0f} s"
            for side, curve in curves.items()
            if curve.reward
        ]
        if max((len(curve.reward) for curve in curves.values()), default=0) % 10 == 0:
            self.say(f"{task.name}, seed {task.seed}: {'; '.join(shown)}")

    def write(self) -> None:
        """The figures so far, and their picture."""
        from benchmarks.curves.picture import draw

        (self.folder / "learning.json").write_text(json.dumps(self.result, indent=1) + "\n")
        draw(self.folder / "learning.png", self.result)

    @property
    def failed(self) -> list[str]:
        """Why runs ended before their time."""
        return [run["error"] for record in self.result["tasks"].values() for run in record["runs"] if run["error"]]


def table_of(result: Mapping[str, Any]) -> Any:
    """A row for each task and side."""
    from rich.table import Table

    table = Table(title=f"seconds to reward {result['target']:g} (mean of {result['window']} iterations), medians")
    for column in ("task", "side", "reached", "seconds", "iterations", "s an iteration"):
        table.add_column(column, justify="left" if column in ("task", "side") else "right")
    for name, record in result["tasks"].items():
        told = record["summary"]
        for side in ("trl", "ours"):
            if side in told:
                own = told[side]
                values = own["seconds_to_target"], own["iterations_to_target"], own["seconds_per_iteration"]
                shown = ["not reached", "", ""]
                shown = [empty if v is None else f"{v:.4g}" for v, empty in zip(values, shown, strict=True)]
                table.add_row(name, side, f"{own['reached']} of {own['runs']}", *shown)
        ratios = told.get("ratio_seconds_to_target"), told.get("ratio_seconds_per_iteration")
        if any(ratios):
            first, second = ("" if ratio is None else f"{ratio:.2f} x" for ratio in ratios)
            table.add_row(name, "TRL's over ours", "", first, "", second, end_section=True)
    return table


def main(arguments: list[str] | None = None) -> int:
    """The command; its exit code."""
    from rich.console import Console

    console = Console(soft_wrap=True)
    try:
        options = parsed(sys.argv[1:] if arguments is None else arguments, LearningOptions, COMMAND)
        learning = Learning(
            options,
            new_folder(options.run_dir, "learning"),
            lambda text: console.print(text, highlight=False, markup=False),
        )
        learning.measure()
    except UserError as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        return 2
    console.print(table_of(learning.result))
    for note in learning.result["notes"]:
        console.print(f"note: {note}", highlight=False, markup=False)
    for failure in learning.failed:
        console.print(f"failed: {failure}", highlight=False, markup=False)
    for title, name in (("figures", "learning.json"), ("picture", "learning.png")):
        console.print(f"{title}   {learning.folder / name}", highlight=False)
    return 1 if learning.failed else 0


if __name__ == "__main__":
    sys.exit(main())
