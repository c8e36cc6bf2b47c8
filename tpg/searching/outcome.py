"""What a study has found: a line a trial, a table, pictures, and the overrides to paste."""

import csv
import io
import shlex
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import optuna
from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from tpg.reporting.search_pictures import draw_importances, draw_parallel_coordinates
from tpg.searching.definition import Sweep
from tpg.searching.parameters import Categorical, Float, Int
from tpg.searching.study import killed, repeated
from tpg.searching.trial import told
from tpg.training.run_folder import write_atomically

SHOWN = 10
"""Trials in the table on the screen."""


def best(study: Study, sweep: Sweep) -> list[FrozenTrial]:
    """The best finished trial; with several objectives those that no other beats in all of them."""
    complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    if not complete:
        return []
    return [study.best_trial] if len(sweep.wanted) == 1 else sorted(study.best_trials, key=lambda t: t.number)


def line(study: Study, sweep: Sweep, number: int, console: Console) -> None:
    """Say how a trial ended, and the best so far."""
    trials = study.get_trials(deepcopy=False)
    trial = next(trial for trial in trials if trial.number == number)
    ended = sum(trial.state.is_finished() and not killed(trial) for trial in trials)
    colour = {TrialState.COMPLETE: "green", TrialState.PRUNED: "yellow"}.get(trial.state, "red")
    winners = best(study, sweep)
    leader = ""
    if len(sweep.wanted) == 1 and winners:
        leader = f"  best {winners[0].value:.4g} (trial {winners[0].number})"
    elif winners:
        leader = f"  front: trials {', '.join(str(winner.number) for winner in winners)}"
    console.print(
        f"trial {number:<3} [{colour}]{escape(told(trial, sweep))}[/{colour}]{leader}  {_values(trial, sweep)}"
        f"  {trial.user_attrs.get('seconds', 0):.0f} s  ({ended} of {sweep.limit})",
        highlight=False,
    )


def conclude(study: Study, sweep: Sweep, folder: Path, fixed: Sequence[str], name: str, console: Console) -> None:
    """Write trials.csv, best.yaml and the pictures, and print the best trials."""
    trials = [trial for trial in study.get_trials(deepcopy=False) if "surplus" not in trial.user_attrs]
    write_atomically(folder / "trials.csv", _csv(trials, sweep))
    winners = best(study, sweep)
    pictures = []
    if winners:
        write_atomically(folder / "best.yaml", _best_text(study, winners, sweep, fixed, name))
        pictures = _draw(study, sweep, folder, name)
    counts = {state: sum(trial.state == state for trial in trials) for state in TrialState}
    stopped = [trial.number for trial in trials if killed(trial)]
    left = set(stopped) - repeated(trials)
    console.print(
        f"\n[bold]{counts[TrialState.COMPLETE]} trials finished, {counts[TrialState.PRUNED]} pruned,"
        f" {counts[TrialState.FAIL] - len(stopped)} failed[/bold]"
        + (f", {len(left)} stopped before the end" if left else ""),
        highlight=False,
    )
    if winners:
        console.print(_table(study, winners, trials, sweep))
    for path in ("best.yaml", "trials.csv", *pictures):
        if (folder / path).exists():
            console.print(f"{Path(path).stem.replace('_', ' '):21} {_shown(folder / path)}", highlight=False)
    for winner in winners[:1]:
        command = shlex.join(["python", "-m", "tpg.train", *fixed, *sweep.overrides(winner.params)])
        label = "train the best" if len(winners) == 1 else "train one of the best"
        console.print(f"{label:21} {escape(command)}", highlight=False)


def _table(study: Study, winners: list[FrozenTrial], trials: list[FrozenTrial], sweep: Sweep) -> Table:
    table = Table(title="best trials" if len(sweep.wanted) == 1 else "trials that no other beats", title_justify="left")
    for title in ("trial", *sweep.wanted, *sweep.parameters):
        table.add_column(title, justify="right")
    shown = winners
    if len(sweep.wanted) == 1:
        complete = [trial for trial in trials if trial.state == TrialState.COMPLETE]
        down = next(iter(sweep.wanted.values())) == "maximize"
        shown = sorted(complete, key=lambda trial: trial.values[0], reverse=down)
    for trial in shown[:SHOWN]:
        values = [f"{value:.4g}" for value in trial.values]
        table.add_row(str(trial.number), *values, *(_short(trial.params[key]) for key in sweep.parameters))
    return table


def _draw(study: Study, sweep: Sweep, folder: Path, name: str) -> list[str]:
    """The pictures' names. With too few trials there is no importance to tell."""
    complete = [trial for trial in study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)) if trial.params]
    axes = [*sweep.parameters, *sweep.wanted]
    rows = [[*(trial.params[key] for key in sweep.parameters), *trial.values] for trial in complete]
    logarithmic = {key for key, p in sweep.parameters.items() if isinstance(p, Float | Int) and p.log}
    listed = {key: p.corners() for key, p in sweep.parameters.items() if isinstance(p, Categorical)}
    first = next(iter(sweep.wanted.items()))
    draw_parallel_coordinates(
        folder / "parallel_coordinates.png", f"{name}: {len(rows)} trials", axes, rows, logarithmic, listed, *first
    )
    importances = {objective: importance(study, at) for at, objective in enumerate(sweep.wanted)}
    known = {objective: shares for objective, shares in importances.items() if shares}
    if not known:
        return ["parallel_coordinates.png"]
    draw_importances(folder / "importance.png", f"{name}: what the trials' values depend on", known)
    return ["importance.png", "parallel_coordinates.png"]


def importance(study: Study, objective: int) -> dict[str, float]:
    """Each parameter's share in what sets the best trials apart; empty where there are too few. (arXiv 2304.10255.)"""

    def value(trial: FrozenTrial) -> float:
        sign = 1 if study.directions[objective] == optuna.study.StudyDirection.MINIMIZE else -1
        return sign * trial.values[objective]

    complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    if len({value(trial) for trial in complete}) < 2:
        return {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.filterwarnings("error", message="Target and region quantiles select the same")
        try:
            found = get_param_importances(study, evaluator=PedAnovaImportanceEvaluator(), target=value)
        except (ValueError, RuntimeError, ZeroDivisionError, UserWarning):
            return {}
    return found if any(found.values()) else {}


def _csv(trials: list[FrozenTrial], sweep: Sweep) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["trial", "state", *sweep.wanted, *sweep.parameters, "seconds", "folder", "error"])
    for trial in trials:
        values = list(trial.values or [""] * len(sweep.wanted)) if trial.state == TrialState.COMPLETE else []
        values = values or [""] * len(sweep.wanted)
        state = "stopped" if killed(trial) else trial.state.name.lower()
        facts = [trial.user_attrs.get(fact, "") for fact in ("seconds", "folder", "error")]
        writer.writerow(
            [trial.number, state, *values, *(trial.params.get(key, "") for key in sweep.parameters), *facts]
        )
    return text.getvalue()


def _best_text(study: Study, winners: list[FrozenTrial], sweep: Sweep, fixed: Sequence[str], name: str) -> str:
    import yaml

    lines = [f"# The best of the sweep {name}. To train it again, paste the command; or give its overrides to a sweep."]
    entries: list[dict[str, Any]] = []
    for trial in winners:
        overrides = [*fixed, *sweep.overrides(trial.params)]
        lines.append(f"# python -m tpg.train {shlex.join(overrides)}")
        entries.append(
            {
                "trial": trial.number,
                "run": trial.user_attrs["folder"],
                "values": dict(zip(sweep.wanted, trial.values, strict=True)),
                "overrides": overrides,
            }
        )
    return "\n".join(lines) + "\n" + yaml.safe_dump(entries, sort_keys=False, width=1000)


def _values(trial: FrozenTrial, sweep: Sweep) -> str:
    return escape(" ".join(f"{key}={_short(trial.params[key])}" for key in sweep.parameters if key in trial.params))


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _shown(path: Path) -> Path:
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
