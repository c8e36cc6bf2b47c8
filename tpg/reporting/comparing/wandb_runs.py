"""Runs as Weights & Biases keeps them."""

from typing import Any

from tpg.errors import UserError, one_line
from tpg.reporting.comparing.runs import OWN_KEYS, Found, Run

PREFIX = "wandb:"


def find_wandb_runs(place: str) -> Found:
    """The runs of `wandb:entity/project`, or of one group of it with `/group` behind.

    Their completions stay where they are. Raises `UserError` when there is no such project or no login.
    """
    import wandb

    entity, project, group = [*place.removeprefix(PREFIX).split("/", 2), "", ""][:3]
    if not entity or not project:
        raise UserError(f"runs={place}: should be {PREFIX}entity/project or {PREFIX}entity/project/group")
    try:
        found = list(wandb.Api().runs(f"{entity}/{project}", filters={"group": group} if group else None))
    except (wandb.errors.Error, ValueError) as error:
        told = one_line(error)
        raise UserError(f"runs={place}: Weights & Biases cannot be read: {told}") from error
    runs, notes = [], []
    for each in found:
        if dict(each.config).keys() >= OWN_KEYS:
            runs.append(_run(each))
        else:
            notes.append(f"{each.name} is no run of tpg.train")
    if not runs:
        raise UserError(f"runs={place}: holds no run of tpg.train")
    return Found(runs, [*notes, f"completions are not fetched from {place}"])


def _run(found: Any) -> Run:
    rows = [_numbers(row) for row in found.scan_history() if row.get("iteration") is not None]
    final = _numbers(dict(found.summary.get("final") or {})) | {
        key.removeprefix("final/"): value for key, value in _numbers(dict(found.summary)).items()
    }
    return Run(
        name=found.name,
        place=found.url,
        config=dict(found.config),
        # A run that was resumed has logged an iteration again: the later row stands.
        rows=[row for _, row in sorted({row["iteration"]: row for row in rows}.items())],
        final={key: value for key, value in final.items() if key.startswith("eval/")}
        if found.state == "finished"
        else {},
        finished=found.state == "finished",
    )


def _numbers(row: dict[str, Any]) -> dict[str, float]:
    numbers = {}
    for key, value in row.items():
        try:
            numbers[key] = float(value)
        except (TypeError, ValueError):
            continue
    return numbers
