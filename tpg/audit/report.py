"""What an audit prints and leaves."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from tpg.audit.rows import Row
from tpg.reporting.audit_picture import draw_audit
from tpg.training.run_folder import write_atomically


def table(rows: Sequence[Row], title: str) -> Table:
    """A row a method."""
    made = Table(title=title, title_justify="left", caption_justify="left")
    made.add_column("estimator")
    for key in rows[0].varied:
        made.add_column(key.replace("_", " "), justify="right")
    for name in ("responses a prompt", "relative bias", "scale", "cosine", "trace of covariance"):
        made.add_column(name, justify="right", max_width=10)
    for name in ("tokens a batch", "noise per token", "noise per update"):
        made.add_column(name, justify="right", max_width=9)
    made.add_column("verdict", min_width=24)
    for row in rows:
        j = row.judgement
        colour = "green" if j.exact else "yellow" if j.exact_direction else "red"
        numbers = (
            *map(str, row.varied.values()),
            str(row.group),
            _bias(j.relative_bias, j.margin),
            f"{j.scale:.3f}",
            f"{j.cosine:.3f}",
            f"{j.trace_covariance:.3g}",
            f"{j.generated_tokens:.4g}",
            f"{j.noise_per_token:.4g}",
            f"{j.noise_per_update:.4g}",
        )
        made.add_row(row.estimator, *numbers, f"[{colour}]{j.verdict}[/{colour}]")
    return made


def policy_table(rows: Sequence[Mapping[str, Any]], title: str) -> Table:
    """A row an estimator, with 95 % intervals; "-" where the batches say nothing."""
    made = Table(title=title, title_justify="left")
    made.add_column("estimator")
    for name in ("cosine", "scale", "signal to noise", "tokens a batch", "noise per token", "responses for same noise"):
        made.add_column(name, justify="right", max_width=20)
    made.add_column("verdict", min_width=24)
    for row in rows:
        made.add_row(
            row["estimator"],
            _interval(row, "cosine", ".3f"),
            _interval(row, "scale", ".3f"),
            _interval(row, "snr", ".3g"),
            f"{row['generated_tokens']:.0f}",
            _interval(row, "noise_per_token", ".3g"),
            _number(row["responses_for_same_noise"], ".2f") + " x",
            row["verdict"],
        )
    return made


def _interval(row: Mapping[str, Any], key: str, form: str) -> str:
    low, high = (_number(row[f"{key}_{end}"], form) for end in ("low", "high"))
    return f"{_number(row[key], form)} ({low} to {high})"


def _number(value: float, form: str) -> str:
    return f"{value:{form}}" if math.isfinite(value) else "-"


def _bias(bias: float, margin: float) -> str:
    if margin:
        return f"{bias:.3f} +-{margin:.3f}"
    return f"{bias:.0e}" if bias < 5e-4 else f"{bias:.3f}"


def print_causes(rows: Sequence[Row], console: Console) -> None:
    """What is left of each method's bias as its ingredients are taken out, one after the other."""
    for row in rows:
        if not row.causes:
            continue
        name = " ".join([row.estimator, *(f"{key}={value}" for key, value in row.varied.items())])
        steps = [f"as it is: cos {row.judgement.cosine:.4f}, bias {row.judgement.relative_bias:.3f}"]
        steps += [
            f"without {cause.name}: cos {cause.cosine:.4f}, bias {_bias(cause.relative_bias, 0)}"
            for cause in row.causes
        ]
        console.print(f"{name}  " + "; ".join(steps), highlight=False, soft_wrap=True)


def write(folder: Path, rows: Sequence[Mapping[str, Any]], title: str) -> None:
    """audit.json and audit.png."""
    folder.mkdir(parents=True, exist_ok=True)
    # JSON has no NaN.
    plain = [{key: None if value != value else value for key, value in row.items()} for row in rows]
    write_atomically(folder / "audit.json", json.dumps(plain, indent=2) + "\n")
    draw_audit(folder / "audit.png", title, rows)
