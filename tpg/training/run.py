"""One run from its options to what it leaves behind."""

import json
import logging
import math
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from safetensors.torch import load_model, save_model

from tpg.policies.base import Policy, Reference
from tpg.policies.critic import Critic
from tpg.randomness import Purpose, torch_seed
from tpg.reporting.learning_curve import draw_learning_curve
from tpg.rewards.model import RewardModel
from tpg.rollouts.engine import Engine
from tpg.tasks.rendering import render_prompts
from tpg.training.checkpoints import AtomicCheckpointIO, Checkpoints, StopRequest
from tpg.training.evaluation import EvaluationResult, Evaluator, PeriodicEvaluation
from tpg.training.experience import Collector
from tpg.training.experiment import Experiment
from tpg.training.module import TrajectoryPolicyGradient
from tpg.training.prompts import PromptStream
from tpg.training.recording import FolderRecorder, ProgressLine
from tpg.training.run_folder import RunFolder, write_atomically
from tpg.training.shadow import Shadows
from tpg.training.token_record import TokenRecorder
from tpg.training.tracking import Tracking
from tpg.training.warm_start import warm_start


@dataclass(frozen=True)
class Prepared:
    """What is loaded before a folder is made: a mistake up to here leaves nothing behind."""

    policy: Policy
    critic_source: Policy
    """The model that a critic starts from."""
    training: PromptStream
    held_out: PromptStream
    notes: tuple[str, ...]


def prepare(experiment: Experiment) -> Prepared:
    """Load policy and task. Raises `UserError` when either is not to be had."""
    quiet_libraries()
    seed = torch_seed(experiment.seed, Purpose.INITIALIZATION)
    policy = experiment.policy.load(seed)
    critic_source = experiment.critic.source(policy, experiment.policy, seed)
    task = experiment.task
    examples = task.load(experiment.seed)
    limit = experiment.rollout.max_prompt_tokens
    training, held_out = (
        render_prompts(task, part, policy.tokenizer, limit, task.overlong_prompts)
        for part in (examples.train, examples.evaluation)
    )
    notes = list(examples.notes)
    filtered = training.filtered + held_out.filtered
    if filtered:
        notes.append(f"{filtered} prompts longer than {limit} tokens are left out")
    warmup = getattr(experiment.critic, "warmup_iterations", 0) if experiment.estimator.needs_critic else 0
    if warmup:
        notes.append(f"the critic alone is trained in the first {warmup} iterations; the policy stays as it is")
    streams = PromptStream(training, experiment.seed), PromptStream(held_out, experiment.seed)
    return Prepared(policy, critic_source, *streams, tuple(notes))


def run(
    experiment: Experiment,
    prepared: Prepared,
    folder: RunFolder,
    config: Mapping[str, Any],
    stop_file: Path | None = None,
) -> dict[str, Any]:
    """Train, from the newest checkpoint if there is one, and finish. Returns the summary.

    Raises `Interrupted` when SIGTERM, SIGINT or the stop file asked for a stop; a checkpoint stands then.
    """
    console = Console(soft_wrap=True)
    checkpoint = folder.newest_checkpoint()
    experiment, notes = experiment.on_this_machine(prepared.policy, folder.precision)
    _announce(experiment, replace(prepared, notes=(*prepared.notes, *notes)), folder, checkpoint, console)
    policy = prepared.policy
    stop = StopRequest(stop_file)
    stop.install()
    _warm_start(experiment, policy, folder, console, stop)
    with (
        RewardModel(experiment.reward_model, experiment.reward_workers) as reward_model,
        experiment.rollout.build(policy) as engine,
    ):
        if engine.note:
            console.print(f"note: {engine.note}", highlight=False)
        critic = experiment.critic.build(prepared.critic_source) if experiment.estimator.needs_critic else None
        collector = collector_of(experiment, engine, prepared, reward_model, critic, stop.check)
        responses = experiment.rollout.prompts * experiment.rollout.responses_per_prompt
        module = TrajectoryPolicyGradient(
            collector,
            experiment.optimizer,
            experiment.iterations * experiment.update.steps(responses),
        )
        evaluator = Evaluator(experiment.evaluation, engine, prepared.held_out, reward_model, stop.check)
        folder.cut_back(_iteration_of(checkpoint))
        with collector, Tracking(experiment.logger, folder, config, _iteration_of(checkpoint)) as tracking:
            callbacks = [
                PeriodicEvaluation(evaluator),
                *([Shadows(experiment.shadow_estimators)] if experiment.shadow_estimators else []),
                *experiment.callbacks.values(),
                TokenRecorder(folder, experiment.checkpoint, experiment.iterations),
                FolderRecorder(folder, tables_every=experiment.checkpoint.every),
                ProgressLine(experiment.iterations, console),
                Checkpoints(folder, experiment.checkpoint, experiment.iterations, stop),
            ]
            trainer = experiment.trainer.build(
                experiment.iterations, folder.path, callbacks, tracking.loggers, [AtomicCheckpointIO()]
            )
            if checkpoint is not None and _iteration_of(checkpoint) >= experiment.iterations:
                module.load_state_dict(torch.load(checkpoint, weights_only=True)["state_dict"])
            else:
                trainer.fit(module, ckpt_path=checkpoint, weights_only=True if checkpoint else None)
            final = None
            if experiment.evaluation.every:
                with trainer.precision_plugin.forward_context():
                    final = evaluator.evaluate()
            summary = _finish(experiment, policy, folder, final, console)
            tracking.finish(summary)
            return summary


def collector_of(
    experiment: Experiment,
    engine: Engine,
    prepared: Prepared,
    reward_model: RewardModel,
    critic: Critic | None,
    on_step: Callable[[], None],
) -> Collector:
    """What makes the experience of the experiment's iterations."""
    return Collector(
        engine=engine,
        stream=prepared.training,
        reward_model=reward_model,
        method=experiment.method,
        update=experiment.update,
        reference=Reference(prepared.policy) if experiment.kl.needs_reference else None,
        on_step=on_step,
        critic=critic,
    )


def quiet_libraries() -> None:
    """Leave the screen to what the user asked for."""
    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    for name in ("lightning.pytorch", "lightning.fabric", "lightning.pytorch.utilities.rank_zero"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module=r"lightning\..*")
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"transformers\..*")
    warnings.filterwarnings("ignore", message=".*isinstance.treespec, LeafSpec.*")


def _iteration_of(checkpoint: Path | None) -> int:
    return int(checkpoint.stem.split("-")[1]) if checkpoint else 0


def _announce(
    experiment: Experiment, prepared: Prepared, folder: RunFolder, checkpoint: Path | None, console: Console
) -> None:
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
    begun = f"continuing after iteration {_iteration_of(checkpoint)} of" if checkpoint else "run folder"
    console.print(f"{begun} {_shown(folder.path)}", highlight=False)


def _warm_start(experiment: Experiment, policy: Policy, folder: RunFolder, console: Console, stop: StopRequest) -> None:
    if not experiment.warm_start.steps:
        return
    kept = folder.path / "warm_start.safetensors"
    if kept.exists():
        load_model(policy, kept)
        return
    with console.status("warm start") as status:
        losses = []

        def show(loss: float) -> None:
            stop.check()
            losses.append(loss)
            status.update(f"warm start {len(losses)}/{experiment.warm_start.steps}  loss {loss:.3f}")

        options, limit = experiment.warm_start, experiment.rollout.max_prompt_tokens
        warm_start(policy, experiment.task, options, experiment.seed, limit, show)
    staging = kept.with_suffix(".tmp")
    save_model(policy, str(staging))
    staging.replace(kept)
    console.print(f"warm start: {len(losses)} supervised steps, loss {losses[0]:.3f} -> {losses[-1]:.3f}")


def _finish(
    experiment: Experiment,
    policy: Policy,
    folder: RunFolder,
    final: EvaluationResult | None,
    console: Console,
) -> dict[str, Any]:
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
        "last": last,
    }
    policy.save(folder.policy)
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


def _shown(path: Path) -> Path:
    """The path as one would type it here."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
