"""An audit from its options to what it prints and leaves."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from tpg.audit.model import audit_policy
from tpg.audit.report import policy_table, print_causes, table, write
from tpg.audit.rows import Names, audit, refuse_relative, setting_of, settings_of
from tpg.estimators.base import Estimator
from tpg.training.experiment import Experiment
from tpg.training.preparation import prepare, quiet_libraries
from tpg.training.tracking.loggers import Start, WandB


def on_worlds(
    experiment: Experiment,
    estimators: Mapping[str, Estimator],
    choices: Mapping[str, str],
    folder: Path,
    config: Mapping[str, Any],
) -> float:
    """Enumerate, print, write; returns the first row's relative bias."""
    options = experiment.audit
    # What cannot go together is refused before anything is shown.
    refuse_relative(experiment.combination)
    for estimator in estimators.values():
        for varied in settings_of(options):
            method = experiment.with_estimator(estimator).method
            setting_of(method, experiment.rollout.sampling, replace(options, **varied))
    console = Console(width=None if Console().is_terminal else 160)
    if not isinstance(options.estimators, dict):
        estimators = {name: _in_miniature(name, each, options.horizon, console) for name, each in estimators.items()}
    with _progress(console) as progress:
        tasks = {name: progress.add_task(name, total=options.worlds * len(settings_of(options))) for name in estimators}
        rows = audit(
            dict(estimators),
            experiment.method,
            experiment.rollout.sampling,
            Names(*(str(choices[group]) for group in ("objective", "aggregation", "kl", "mismatch"))),
            options,
            lambda name: progress.advance(tasks[name]),
        )
    tokens = f"at most {options.horizon} tokens" if options.end else f"{options.horizon} tokens"
    title = (
        f"{options.worlds} worlds of {options.prompts} prompt(s), {tokens} out of {options.vocabulary},"
        f" {options.reward.replace('_', ' ')} rewards; {rows[0].names.objective}, {rows[0].names.aggregation},"
        f" kl {rows[0].names.kl}; medians"
    )
    console.print(table(rows, title))
    if not options.end:
        console.print("note: all responses are of one length here; audit.end=true lets them differ", highlight=False)
    print_causes(rows, console)
    if any(not row.judgement.enumerated for row in rows):
        console.print(
            f"note: beyond audit.limit={options.limit} batches {options.samples} were drawn instead of enumerated"
            " (a tenth where batches must be weighed one by one)",
            highlight=False,
        )
    written = [row.as_dict() for row in rows]
    _leave(experiment, folder, written, title, config, console)
    return rows[0].judgement.relative_bias


def _in_miniature(name: str, estimator: Estimator, horizon: int, console: Console) -> Estimator:
    """What stands for the estimator in short responses; said where it is another."""
    small = estimator.in_miniature(horizon)
    for field in dataclasses.fields(small):
        value, own = getattr(small, field.name), getattr(estimator, field.name)
        if value != own:
            console.print(f"note: {name}: in responses of {horizon} tokens {field.name}={value} stands for {own}")
    return small


def on_policy(
    experiment: Experiment,
    estimators: Mapping[str, Estimator],
    choices: Mapping[str, str],
    folder: Path,
    config: Mapping[str, Any],
) -> float:
    """Generate with the policy itself, print, write; returns the first row's noise to signal per generated token."""
    warnings = experiment.check()
    prepared = prepare(experiment)
    console = Console(width=None if Console().is_terminal else 160)
    for warning in warnings:
        console.print(f"note: {warning}", highlight=False, markup=False)
    parts = {group: str(choices[group]) for group in ("objective", "aggregation", "kl", "mismatch")}
    batches = experiment.audit.batches
    rows = audit_policy(experiment, prepared, estimators, batches, names=parts, console=console)
    rollout = experiment.rollout
    title = (
        f"{batches} batches of {rollout.prompts} prompts x {rollout.responses_per_prompt} responses;"
        f" {parts['objective']}, {parts['aggregation']}, kl {parts['kl']}; gradient of the output layer, sketched"
    )
    console.print(policy_table(rows, title))
    _leave(experiment, folder, rows, title, config, console)
    return float(rows[0]["noise_per_token"])


def _progress(console: Console) -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    return Progress(*columns, TimeRemainingColumn(), console=console, transient=True)


def _leave(
    experiment: Experiment,
    folder: Path,
    rows: Sequence[Mapping[str, Any]],
    title: str,
    config: Mapping[str, Any],
    console: Console,
) -> None:
    """What stays: the folder, and the same in W&B where it is a logger."""
    quiet_libraries()
    write(folder, rows, title)
    for logger in experiment.logger.values():
        if isinstance(logger, WandB):
            built = logger.build(Start(folder=folder, run_id=str(config["run_id"]), config=config, iteration=0))
            columns = [key for key in rows[0] if key != "causes"]
            built.log_table("audit", columns=columns, data=[[row[key] for key in columns] for row in rows])
            built.log_image("audit/picture", [str(folder / "audit.png")])
            built.experiment.summary.update({f"audit/{row['estimator']}/verdict": row["verdict"] for row in rows})
            built.experiment.finish()
    shown = folder.relative_to(Path.cwd()) if folder.is_relative_to(Path.cwd()) else folder
    console.print(f"audit  {shown}/audit.json  {shown}/audit.png", highlight=False)
