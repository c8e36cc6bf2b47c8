"""One run from its options to what it leaves behind."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from safetensors.torch import load_model, save_model

from tpg.policies.base import Policy, Reference
from tpg.policies.critic import Critic
from tpg.policies.gathered import Gathered
from tpg.reporting.automaton_picture import draw_automata
from tpg.rewards.model import RewardModel
from tpg.rollouts.engine import Engine
from tpg.training.checkpoint_files import AtomicCheckpointIO, FoundCheckpoints
from tpg.training.checkpoints import Checkpoints, StopRequest
from tpg.training.evaluation import Evaluator, PeriodicEvaluation
from tpg.training.experience import Collector
from tpg.training.experiment import Experiment
from tpg.training.faults.nonfinite_record import NonfiniteSteps
from tpg.training.guarding import Guards
from tpg.training.module import TrajectoryPolicyGradient
from tpg.training.parallel.ranks import Ranks
from tpg.training.preparation import Prepared
from tpg.training.recording import FolderRecorder, ProgressLine
from tpg.training.run_folder import RunFolder, put_in_place
from tpg.training.shadow import Shadows
from tpg.training.summary import announce, finish
from tpg.training.token_record import TokenRecorder
from tpg.training.tracking.session import Tracking
from tpg.training.warm_start import warm_start


def run(
    experiment: Experiment,
    prepared: Prepared,
    folder: RunFolder,
    config: Mapping[str, Any],
    stop_file: Path | None = None,
    ranks: Ranks | None = None,
) -> dict[str, Any]:
    """Train, from the newest checkpoint if there is one, and finish. Returns the summary.

    Every process of `ranks` runs this; what is written and said is the main one's. Raises `Interrupted` when SIGTERM,
    SIGINT or the stop file asked for a stop; a checkpoint stands then.
    """
    ranks = ranks or Ranks()
    folder.writes = ranks.main
    console = Console(soft_wrap=True, quiet=not ranks.main)
    found = ranks.from_main(lambda: FoundCheckpoints.of(folder))
    checkpoint = found.newest
    for warning in found.warnings:
        console.print(f"warning: {warning}", highlight=False)
    experiment, notes = experiment.on_this_machine(prepared.policy, folder.precision, ranks)
    announce(experiment, replace(prepared, notes=(*prepared.notes, *notes)), folder, checkpoint, console)
    if ranks.main:
        draw_automata(experiment.reward_model, folder.path)
    policy = prepared.policy
    stop = StopRequest(stop_file)
    stop.install()
    _warm_start(experiment, policy, folder, console, stop, ranks)
    gathered = None
    if experiment.trainer.shards:
        gathered = Gathered(policy, experiment.rollout.decodes_in(experiment.trainer.precision))
    with (
        prepared.reward_model(experiment, ranks.world) as reward_model,
        experiment.rollout.build(policy if gathered is None else gathered.policy) as engine,
    ):
        if engine.note:
            console.print(f"note: {engine.note}", highlight=False)
        critic = experiment.critic.build(prepared.critic_source) if experiment.estimator.needs_critic else None
        collector = collector_of(
            experiment, engine, prepared, reward_model, critic, stop.check, ranks=ranks, gathered=gathered
        )
        responses = experiment.rollout.prompts * experiment.rollout.responses_per_prompt
        module = TrajectoryPolicyGradient(
            collector,
            experiment.optimizer,
            experiment.iterations * experiment.update.steps(responses),
        )
        evaluator = Evaluator(experiment.evaluation, engine, prepared.held_out, reward_model, stop.check, ranks)
        evaluation = PeriodicEvaluation(evaluator)
        iteration = RunFolder.iteration_of(checkpoint)
        folder.cut_back(iteration)
        with collector, Tracking(experiment.logger, folder, config, iteration) as tracking:
            callbacks = [
                evaluation,
                *([Shadows(experiment.shadow_estimators)] if experiment.shadow_estimators else []),
                *experiment.callbacks.values(),
                TokenRecorder(folder, experiment.checkpoint, experiment.iterations),
                FolderRecorder(folder, tables_every=experiment.checkpoint.every),
                ProgressLine(experiment.iterations, console),
                NonfiniteSteps(folder.path if folder.writes else None, experiment.update.stop_after_nonfinite, console),
                Guards(experiment.watched, responses, experiment.iterations, folder, console, ranks),
                Checkpoints(folder, experiment.checkpoint, experiment.iterations, stop, ranks, found),
            ]
            trainer = experiment.trainer.build(
                experiment.iterations, folder.path, callbacks, tracking.loggers, [AtomicCheckpointIO()]
            )
            reward_model.to(str(trainer.strategy.root_device))
            if checkpoint is not None and iteration >= experiment.iterations:
                state = torch.load(checkpoint, map_location="cpu", weights_only=True)
                module.load_state_dict(state["state_dict"])
                reward_model.restore(state["tpg"].get("rewards", {}))
                policy.to(trainer.strategy.root_device)
                evaluation.on_train_end(trainer, module)
            else:
                trainer.fit(module, ckpt_path=checkpoint, weights_only=True if checkpoint else None)
            whole = policy if gathered is None else gathered.own_types(policy, keep=ranks.main)

            def finished() -> dict[str, Any]:
                assert whole is not None
                return finish(experiment, whole, folder, evaluation.final, console)

            summary = ranks.from_main(finished)
            tracking.finish(summary)
            return summary


def collector_of(
    experiment: Experiment,
    engine: Engine,
    prepared: Prepared,
    reward_model: RewardModel,
    critic: Critic | None,
    on_step: Callable[[], None],
    *,
    ranks: Ranks | None = None,
    gathered: Gathered | None = None,
) -> Collector:
    """What makes the experience of the experiment's iterations."""
    return Collector(
        policy=prepared.policy,
        engine=engine,
        stream=prepared.training,
        reward_model=reward_model,
        method=experiment.method,
        update=experiment.update,
        reference=Reference(prepared.policy) if experiment.kl.needs_reference else None,
        on_step=on_step,
        critic=critic,
        ranks=ranks or Ranks(),
        curriculum=experiment.curriculum,
        gathered=gathered,
    )


def _warm_start(
    experiment: Experiment, policy: Policy, folder: RunFolder, console: Console, stop: StopRequest, ranks: Ranks
) -> None:
    if not experiment.warm_start.steps:
        return
    kept = folder.path / "warm_start.safetensors"

    def train() -> None:
        if not kept.exists():
            _train_on_demonstrations(experiment, policy, kept, console, stop)

    ranks.from_main(train)
    load_model(policy, kept)


def _train_on_demonstrations(
    experiment: Experiment, policy: Policy, kept: Path, console: Console, stop: StopRequest
) -> None:
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
    put_in_place(staging, kept)
    console.print(f"warm start: {len(losses)} supervised steps, loss {losses[0]:.3f} -> {losses[-1]:.3f}")
