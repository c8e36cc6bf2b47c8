"""What a run says when it begins, and what it leaves when it is done."""

import json
import math
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape

from tpg.policies.base import Policy
from tpg.reporting.guard_records import NAME, iterations_by_guard, read_records, spans
from tpg.reporting.learning_curve import draw_learning_curve
from tpg.training.evaluation import EvaluationResult
from tpg.training.experiment import Experiment
from tpg.training.preparation import Prepared
from tpg.training.run_folder import RunFolder, write_atomically


def announce(
    experiment: Experiment, prepared: Prepared, folder: RunFolder, checkpoint: Path | None, console: Console
) -> None:
    """Say what will be done, in the words of the sizes."""
    rollout, update = experiment.rollout, experiment.update
    responses = rollout.prompts * rollout.responses_per_prompt
    trainable = sum(parameter.numel() for parameter in prepared.policy.parameters() if parameter.requires_grad)
    held_out = len(prepared.held_out.prompts.token_ids)
    console.print(
        f"[bold]{type(experiment.estimator).__name__}[/bold] on {type(experiment.task).__name__},"
        f" seed {experiment.seed}: {len(prepared.training.prompts.token_ids)} prompts to train on, {held_out} held out;"
        f" {trainable / 1e6:.1f}M trainable parameters",
        highlight=False,
    )
    console.print(
        f"an iteration: {rollout.prompts} prompts x {rollout.responses_per_prompt} responses = {responses} responses of"
        f" at most {rollout.max_response_tokens} tokens; {update.steps(responses)} optimizer step(s) on"
        f" {min(update.responses_per_minibatch or responses, responses)} responses each,"
        f" {update.at_a_time} at a time in memory",
        highlight=False,
    )
    for note in prepared.notes:
        console.print(f"note: {note}", highlight=False)
    begun = f"continuing after iteration {RunFolder.iteration_of(checkpoint)} of" if checkpoint else "run folder"
    console.print(f"{begun} {_shown(folder.path)}", highlight=False)


def finish(
    experiment: Experiment,
    policy: Policy,
    folder: RunFolder,
    final: EvaluationResult | None,
    console: Console,
) -> dict[str, Any]:
    """Write the policy, the summary and the picture, and print what came of the run. Returns the summary."""
    rows = folder.rows()
    last = {name: float(value) for name, value in rows[-1].items() if value}
    rewards = [float(row["reward"]) for row in rows]
    evaluated = {f"eval/{name}": value for name, value in final.estimates.items()} if final else {}
    summary = {
        "iterations": len(rows),
        "reward/first": rewards[0],
        "reward/last": rewards[-1],
        "reward/best": max(rewards),
        **evaluated,
        "num_tokens": int(last["num_tokens"]),
        "seconds": sum(float(row["step_time"]) for row in rows),
        "unscored": int(sum(float(row["completions/unscored"]) for row in rows)),
        **_of_gradients(rows, last),
        **_verdict(folder),
        "guards": iterations_by_guard(spans(read_records(folder.path / NAME), len(rows))),
        "last": last,
    }
    folder.write_policy(policy.save)
    title = f"{type(experiment.estimator).__name__} on {type(experiment.task).__name__}, seed {experiment.seed}"
    draw_learning_curve(folder.learning_curve, title, rows, evaluated)
    write_atomically(folder.summary, json.dumps(summary, indent=2) + "\n")
    _print_summary(summary, rows, folder, console)
    return summary


def _of_gradients(rows: list[dict[str, str]], last: dict[str, float]) -> dict[str, float]:
    """The signal-to-noise ratio of the last gradient, and how shadow estimators compared on average, where they can."""
    found = {name: value for name, value in last.items() if name.startswith("gradient/") and math.isfinite(value)}
    for name in rows[-1]:
        given = [float(row[name]) for row in rows if name.startswith("shadow/") and row[name]]
        values = [value for value in given if math.isfinite(value)]
        if values:
            found[name] = sum(values) / len(values)
    return found


def _verdict(folder: RunFolder) -> dict[str, Any]:
    """What an audit beside the run says of its method."""
    audited = folder.path / "audit.json"
    if not audited.exists():
        return {}
    row = json.loads(audited.read_text())[0]
    return {f"audit/{key}": row[key] for key in ("verdict", "relative_bias", "cosine")}


def _print_summary(summary: dict[str, Any], rows: list[dict[str, str]], folder: RunFolder, console: Console) -> None:
    first_evaluation = next((row["eval/reward"] for row in rows if row.get("eval/reward")), None)
    console.print(
        f"\n[bold]reward {summary['reward/first']:.3f} -> {summary['reward/last']:.3f}[/bold] in"
        f" {summary['iterations']} iterations, {summary['seconds']:.0f} s, {summary['num_tokens']} tokens",
        highlight=False,
    )
    if first_evaluation is not None and "eval/reward" in summary:
        console.print(f"held out  {float(first_evaluation):.3f} -> {summary['eval/reward']:.3f}", highlight=False)
    if "audit/verdict" in summary:
        console.print(f"audit     {summary['audit/verdict']}", highlight=False)
    places = {
        "learning curve": folder.learning_curve,
        "policy": folder.policy,
        "checkpoint": folder.newest_checkpoint(),
        "metrics": folder.metrics,
        "completions": folder.completions,
        "W&B": folder.path / "wandb",
    }
    for name, place in places.items():
        if place is not None and place.exists():
            console.print(f"{name:15} {_shown(place)}", highlight=False)


def _shown(path: Path) -> str:
    """The path as one would type it here, for the console."""
    return escape(str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path))
