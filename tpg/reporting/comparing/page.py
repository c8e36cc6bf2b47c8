"""A report as it is read: one page, a Markdown table, JSON and pictures."""

import json
import math
import re
from collections.abc import Mapping
from dataclasses import asdict
from importlib.resources import files
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from tpg.errors import one_line
from tpg.reporting.comparing.analysis import MethodReport, Report
from tpg.reporting.comparing.examples import LATEST
from tpg.reporting.comparing.pictures import ACROSS, NAMES, colour, curve_svg, draw_curves, draw_final, panels
from tpg.reporting.comparing.statistics import BOOTSTRAP, Estimate
from tpg.reporting.tokens.html import groups_html

NOTHING = "\N{EN DASH}"


def write_report(report: Report, folder: Path, title: str) -> list[Path]:
    """Write all files of the report; returns them, the page first."""
    folder.mkdir(parents=True, exist_ok=True)
    texts = {
        "report.html": html(report, title),
        "report.md": markdown(report, title),
        "report.json": json.dumps(_plain(numbers(report)), indent=1) + "\n",
    }
    for name, text in texts.items():
        staging = folder / f"{name}.tmp"
        staging.write_text(text, encoding="utf-8")
        staging.replace(folder / name)
    draw_curves(folder / "curves.png", report)
    if any(each.performance for each in report.methods):
        draw_final(folder / "final.png", report)
    return [folder / name for name in (*texts, "curves.png", "final.png") if (folder / name).exists()]


def html(report: Report, title: str) -> str:
    """One page that needs nothing else."""
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(lambda name: files("tpg.reporting.comparing").joinpath(name).read_text("utf-8")),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters |= {"number": number, "amount": amount, "bounds": bounds, "colour": colour}
    environment.filters["groups"] = lambda groups: Markup(groups_html(groups))
    shown, scale = panels(report), _scale(report)
    return environment.get_template("report.html.j2").render(
        report=report,
        title=title,
        headline=headline(report),
        measure=NAMES[report.measure],
        pictures=[(f"{NAMES[m]} by {ACROSS[axis]}", Markup(curve_svg(report, (m, axis)))) for m, axis in shown],
        scale=scale,
        at=lambda value: 6 + 158 * (value - scale["low"]) / scale["span"],
        latest=LATEST,
        finished=sum(run.finished for run in report.runs),
    )


def headline(report: Report) -> str:
    """What the report says in two sentences."""
    runs, methods = len(report.runs), len(report.methods)
    text = f"{_count(runs, 'run')} of {_count(methods, 'method')}"
    unfinished = sum(not run.finished for run in report.runs)
    text += f", {unfinished} of them unfinished. " if unfinished else ", all finished. "
    best = report.methods[0]
    if best.performance is None:
        return text.rstrip()
    mean = best.performance.mean
    told = f"a {NAMES[report.measure]} of {number(mean.value)} ({interval(mean)})"
    duel = next((each for each in report.improvements if each.better == best.method.name), None)
    second = next((each.performance.mean.value for each in report.methods[1:] if each.performance), None)
    if duel is None:
        return f"{text}{best.method.name} ends at {told}."
    if second == mean.value:
        return f"{text}No method is ahead: {best.method.name} and {duel.worse} both end at {told}."
    chance = f"{number(duel.probability.value, 2)} ({interval(duel.probability)})"
    text += f"{best.method.name} is ahead with {told}"
    return f"{text}; a run of it beats one of {duel.worse} with probability {chance}."


def markdown(report: Report, title: str) -> str:
    """A table to paste."""
    head = ["method", "runs", f"{NAMES[report.measure]} at the end", "interquartile mean"]
    head += ["half-way after", "tokens a run", "time a run"]
    kinds = {each.performance.mean.kind for each in report.methods if each.performance}
    rows = [head, ["---", *["---:"] * (len(head) - 1)]]
    for each in report.methods:
        unfinished = sum(not run.finished for run in each.method.runs)
        rows.append(
            [
                each.method.name,
                f"{len(each.method.runs)}" + (f" ({unfinished} unfinished)" if unfinished else ""),
                _with_interval(each.performance.mean if each.performance else None, len(kinds) > 1),
                _with_interval(each.performance.iqm if each.performance else None, len(kinds) > 1),
                half_way(each),
                amount(each.cost.tokens),
                f"{amount(each.cost.seconds)} s",
            ]
        )
    table = "\n".join("| " + " | ".join(_cell(cell) for cell in row) + " |" for row in rows)
    below = [headline(report)]
    if len(kinds) == 1:
        below.append(f"In brackets: {kinds.pop()}.")
    if report.threshold is not None:
        below.append(f"Half-way is a training reward of {number(report.threshold)}.")
    return f"### {_cell(title)}\n\n{table}\n\n" + "\n".join(_cell(line) for line in below) + "\n"


def half_way(each: MethodReport) -> str:
    """When a method's runs got half-way, in a few words."""
    reached = each.efficiency
    if reached is None:
        return NOTHING
    if not reached.reached:
        return "never"
    some = "" if reached.reached == reached.runs else f", {reached.reached} of {reached.runs} runs"
    return f"{reached.iterations:g} iterations, {amount(reached.tokens)} tokens{some}"


def numbers(report: Report) -> dict[str, Any]:
    """The report for programs; completions and curves included."""
    return {
        "headline": headline(report),
        "measure": report.measure,
        "threshold": report.threshold,
        "runs": [
            {
                **{"name": run.name, "place": run.place, "seed": run.seed, "state": run.state},
                **{"finished": run.finished, "iterations": len(run.rows), "tokens": run.tokens},
                **{"seconds": run.seconds, "final": run.final},
            }
            for run in report.runs
        ],
        "left_out": report.left_out,
        "notes": report.notes,
        "settings": {setting.key: {"stands_for": setting.stands_for} for setting in report.settings},
        "shared": report.shared,
        "methods": [
            {
                **{"name": each.method.name, "settings": each.method.settings},
                "runs": [run.name for run in each.method.runs],
                "performance": each.performance and asdict(each.performance),
                "efficiency": each.efficiency and asdict(each.efficiency),
                "cost": asdict(each.cost),
                "curves": {f"{NAMES[m]} by {ACROSS[axis]}": asdict(c) for (m, axis), c in each.curves.items() if c.x},
                "completions": asdict(each.examples),
            }
            for each in report.methods
        ],
        "improvements": [asdict(each) for each in report.improvements],
        "ablation": [asdict(each) for each in report.ablation],
        "warnings": [asdict(each) for each in report.concerns],
    }


def number(value: float | None, digits: int = 3) -> str:
    """A reward or a share as text."""
    if value is None or not math.isfinite(value):
        return NOTHING
    return f"{value:.{digits}f}" if abs(value) < 1000 else f"{value:.4g}"


def amount(value: float) -> str:
    """A count or a time with a unit prefix: 950, 12.3k, 4.56M."""
    if not math.isfinite(value):
        return NOTHING
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.3g}{unit}"
    return f"{value:.0f}" if abs(value) >= 100 or value == int(value) else f"{value:.3g}"


def interval(estimate: Estimate) -> str:
    """What is known of the uncertainty, called what it is."""
    if estimate.kind == "one run":
        return "one run"
    if estimate.kind.startswith("too few"):
        return estimate.kind
    return f"{estimate.kind} {number(estimate.low)} to {number(estimate.high)}"


def bounds(estimate: Estimate) -> str:
    """The interval alone where it is a proper one, else with what it is."""
    if estimate.kind == BOOTSTRAP:
        return f"{number(estimate.low)} to {number(estimate.high)}"
    return (
        interval(estimate)
        if estimate.low == estimate.high or estimate.kind.startswith("too few")
        else (f"{number(estimate.low)} to {number(estimate.high)} ({estimate.kind})")
    )


def _with_interval(estimate: Estimate | None, kind: bool) -> str:
    if estimate is None:
        return NOTHING
    if estimate.kind == "one run":
        return f"{number(estimate.value)} [one run]" if kind else number(estimate.value)
    said = f", {estimate.kind}" if kind else ""
    return f"{number(estimate.value)} [{number(estimate.low)}, {number(estimate.high)}{said}]"


def _cell(text: str) -> str:
    """Text that stays in its cell and is no markup."""
    return re.sub(r"([\\`*|<>])", r"\\\1", one_line(text))


def _count(count: int, what: str) -> str:
    return f"{count} {what}" + ("" if count == 1 else "s")


def _scale(report: Report) -> dict[str, float]:
    """From the least to the greatest reward among runs and intervals."""
    values = [each.mean.low for each in report.ablation] + [each.mean.high for each in report.ablation]
    for each in report.methods:
        if each.performance:
            values += [*each.performance.scores, each.performance.mean.low, each.performance.mean.high]
    low, high = (min(values), max(values)) if values else (0.0, 1.0)
    return {"low": low, "span": (high - low) or 1.0}


def _plain(value: Any) -> Any:
    """The same for JSON, which has no NaN."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    return value
