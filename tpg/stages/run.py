"""One stage from its options to what it leaves behind."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

import torch
from rich.console import Console
from rich.markup import escape

from tpg.errors import Interrupted
from tpg.stages.module import StageModule
from tpg.stages.options import Stage
from tpg.stages.recording import StepLine, StepRecorder
from tpg.tasks.table import Parts
from tpg.training.checkpoint_files import AtomicCheckpointIO, FoundCheckpoints
from tpg.training.checkpoints import Checkpoints, StopRequest
from tpg.training.parallel.ranks import Ranks
from tpg.training.run_folder import RunFolder, write_atomically
from tpg.training.tracking.session import Tracking

S = TypeVar("S", bound=Stage)
M = TypeVar("M", bound=StageModule[Any])


class StageFolder(RunFolder):
    """A run's folder whose final model has a name of its own."""

    def __init__(self, path: Path, model: str = "policy") -> None:
        super().__init__(path)
        self.policy = path / model


class Kind(ABC, Generic[S, M]):
    """What one of the stages does that the other does not."""

    entry: ClassVar[str]
    """The module that is typed, e.g. tpg.sft."""
    options: ClassVar[type[Stage]]
    """What its config is built into."""
    data: ClassVar[str]
    """The config group of its data."""
    model: ClassVar[str]
    """The folder of what it trains."""
    rows: ClassVar[str]
    """What its data consists of."""
    objective: ClassVar[str]
    """The held-out metric that a stage comes to."""

    @abstractmethod
    def prepare(self, stage: S) -> tuple[M, tuple[str, ...]]:
        """Load policy and data; what is to be said of them. Raises `UserError` when they are not to be had."""

    @abstractmethod
    def save(self, module: M, folder: Path) -> None:
        """Write the trained model in Hugging Face format."""

    @abstractmethod
    def finish(self, module: M, folder: StageFolder, rows: list[dict[str, str]]) -> dict[str, float]:
        """Pictures and whatever else the stage leaves; what the summary holds of it."""


def run(
    kind: Kind[Any, Any],
    stage: Stage,
    config: Mapping[str, Any],
    module: StageModule[Any],
    notes: tuple[str, ...],
    folder: StageFolder,
    stop: StopRequest,
    ranks: Ranks,
) -> dict[str, Any]:
    """Train, from the newest checkpoint if there is one, and finish. Returns the summary.

    Every process of `ranks` runs this; what is written and said is the main one's. Raises `Interrupted` when SIGTERM,
    SIGINT or the stop file asked for a stop; a checkpoint stands then.
    """
    folder.writes = ranks.main
    steps = module.order.steps
    console = Console(soft_wrap=True, quiet=not ranks.main)
    found = ranks.from_main(lambda: FoundCheckpoints.of(folder))
    done = RunFolder.iteration_of(found.newest)
    for warning in found.warnings:
        console.print(f"warning: {escape(warning)}", highlight=False)
    trainer_options, note = ranks.from_main(lambda: stage.trainer.on_this_machine(module.trained, folder.precision))
    if ranks.world == 1:  # be it trainer=ddp trainer.devices=1: no strategy needs to see the passes
        trainer_options = replace(trainer_options, strategy="single")
    stage = replace(stage, trainer=trainer_options)
    _announce(kind, stage, module, [*notes, *([note] if note else [])], folder, done, console)
    folder.cut_back(done or -1)  # what is measured before the first step is measured again
    module.ranks = ranks
    module.begun_after = done
    module.on_pass = lambda: _leave_if_overdue(stop, stage)
    checkpoints = Checkpoints(folder, stage.checkpoint, steps, stop, ranks, found)
    with Tracking(stage.logger, folder, config, done) as tracking:
        callbacks = [StepRecorder(folder), StepLine(steps, console), checkpoints]
        plugins = [AtomicCheckpointIO()]
        trainer = stage.trainer.build(steps, folder.path, callbacks, tracking.loggers, plugins)
        if done >= steps and found.newest is not None:
            state = torch.load(found.newest, map_location="cpu", weights_only=True)
            module.load_state_dict(state["state_dict"])
            module.on_load_checkpoint(state)
        else:
            trainer.fit(module, ckpt_path=found.newest, weights_only=True if found.newest else None)
        module.trained.to(trainer.strategy.root_device)  # Lightning has left it on the CPU
        module.conclude()
        summary = ranks.from_main(lambda: _finish(kind, module, folder, console))
        tracking.finish(summary)
    return summary


def _leave_if_overdue(stop: StopRequest, stage: Stage) -> None:
    if stop.overdue(stage.checkpoint.stop_within_s):
        raise Interrupted(stop.signal)


def _announce(
    kind: Kind[Any, Any],
    stage: Stage,
    module: StageModule[Any],
    notes: list[str],
    folder: StageFolder,
    done: int,
    console: Console,
) -> None:
    """Say what will be done, in the words of the sizes."""
    order = module.order
    trainable = sum(parameter.numel() for parameter in module.trained.parameters() if parameter.requires_grad)
    console.print(
        f"[bold]{kind.entry}[/bold], seed {stage.seed}: {order.rows} {kind.rows} to train on; {trainable / 1e6:.1f}M"
        " trainable parameters",
        highlight=False,
    )
    console.print(
        f"{order.epochs} epoch(s) of {order.steps_per_epoch} optimizer steps = {order.steps} steps on"
        f" {min(order.per_step, order.rows)} {kind.rows} each,"
        f" at most {stage.tokens_per_microbatch or 'all'} tokens at a time in memory",
        highlight=False,
    )
    for note in notes:
        console.print(f"note: {escape(note)}", highlight=False)
    begun = f"continuing after step {done} of" if done else "run folder"
    console.print(f"{begun} {escape(shown_path(folder.path))}", highlight=False)


def _finish(kind: Kind[Any, Any], module: StageModule[Any], folder: StageFolder, console: Console) -> dict[str, Any]:
    """Write the model, the pictures and, last of all, the summary; print what came of the stage."""
    rows = folder.rows()
    trained = [row for row in rows if int(row["iteration"]) > 0]
    folder.write_policy(lambda place: kind.save(module, place))
    measured = kind.finish(module, folder, rows)
    summary: dict[str, Any] = {
        "stage": kind.entry,
        "iterations": len(trained),
        "epochs": module.order.epochs,
        kind.rows: module.order.rows,
        "loss/first": float(trained[0]["loss"]),
        "loss/last": float(trained[-1]["loss"]),
        f"{kind.objective}/first": float(rows[0][kind.objective]),
        **measured,
        "num_tokens": module.total_tokens,
        "seconds": sum(float(row["step_time"]) for row in trained),
        "last": {name: float(value) for name, value in rows[-1].items() if value},
    }
    write_atomically(folder.summary, json.dumps(summary, indent=2) + "\n")
    say_finished(kind, summary, folder, console)
    return summary


def say_finished(kind: Kind[Any, Any], summary: Mapping[str, Any], folder: StageFolder, console: Console) -> None:
    """The summary in a few lines."""
    first, last = summary[f"{kind.objective}/first"], summary[kind.objective]
    console.print(
        f"\n[bold]held-out {kind.objective.removeprefix('eval/')} {first:.4f} -> {last:.4f}[/bold] in"
        f" {summary['iterations']} steps, {summary['seconds']:.0f} s, {summary['num_tokens']} tokens",
        highlight=False,
    )
    for name, value in summary.items():
        if name.startswith("eval/") and name not in (kind.objective, f"{kind.objective}/first"):
            console.print(f"{name.removeprefix('eval/').replace('_', ' '):24} {value:.4f}", highlight=False)
    for place in (folder.policy, folder.learning_curve, folder.path / "reliability.png", folder.metrics):
        if place.exists():
            console.print(escape(shown_path(place)), highlight=False)


def left_out(parts: Parts[Any], overlong: int, rows: str) -> tuple[str, ...]:
    """What is to be said of data: its own notes, what is held out, and how much was too long."""
    notes = [*parts.notes, f"{len(parts.held_out)} {rows} held out, of prompts that are not trained on"]
    if overlong:
        notes.append(f"{overlong} {rows} longer than the limit are left out")
    return tuple(notes)


def shown_path(path: Path) -> str:
    """The path as one would type it here."""
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)
