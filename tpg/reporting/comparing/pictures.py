"""The pictures of a report: SVG for the page, where text and lines follow light and dark, and PNG to take along."""

import io
import math
import re
import textwrap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tpg.reporting.comparing.analysis import PANELS, MethodReport, Report
from tpg.reporting.comparing.curves import Axis, MeanCurve, Measure
from tpg.reporting.drawing import pyplot, save

COLOURS = ["#3b82f6", "#d97706", "#16a34a", "#a855f7", "#db2777", "#0d9488", "#a16207", "#64748b"]
"""Each stands out from white and from black."""
MARKERS = "os^DvPX*"
OTHERS = "#8b95a5"
"""Of methods beyond the colours."""
INK = "#0a0b0c"
"""Drawn as ink, and replaced by the page's own text colour in SVG."""
NAMES = {"reward": "training reward", "eval/reward": "held-out reward"}
ACROSS = {"iteration": "iteration", "tokens": "generated tokens"}


def colour(place: int) -> str:
    """The colour of the method in that place."""
    return COLOURS[place] if place < len(COLOURS) else OTHERS


def panels(report: Report) -> list[tuple[Measure, Axis]]:
    """The pictures of curves that have something to show."""
    return [panel for panel in PANELS if any(method.curves[panel].x for method in report.methods)]


def curve_svg(report: Report, panel: tuple[Measure, Axis]) -> str:
    """One picture of curves as an SVG element without a fixed size, to be put in a page."""
    with _style() as plt:
        figure, axes = plt.subplots(figsize=(4.7, 3.1))
        _draw_curves(axes, report.methods, panel)
        figure.tight_layout(pad=0.4)
        buffer = io.StringIO()
        nothing = {"Date": None, "Creator": None, "Format": None, "Type": None}
        figure.savefig(buffer, format="svg", transparent=True, metadata=nothing)
        plt.close(figure)
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :].replace(INK, "currentColor")
    svg = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'<svg ([^>]*?)width="[^"]*"', r"<svg \1", re.sub(r'<svg ([^>]*?)height="[^"]*" ', r"<svg \1", svg))
    title = f"{NAMES[panel[0]]} by {ACROSS[panel[1]]}"
    return svg.replace("<svg ", f'<svg role="img" aria-label="{title}; its last values are in the tables" ', 1)


def draw_curves(path: Path, report: Report) -> None:
    """All pictures of curves with one legend, as PNG."""
    shown = panels(report)
    lines = math.ceil(len(shown) / 2)
    with _style() as plt:
        figure, grid = plt.subplots(lines, 2, figsize=(10, 3.6 * lines), dpi=150, squeeze=False, layout="constrained")
        for axes, panel in zip(grid.flat, shown, strict=False):
            _draw_curves(axes, report.methods, panel)
        for spare in grid.flat[len(shown) :]:
            spare.set_axis_off()
        _legend(figure, report.methods)
        save(figure, path)


def draw_final(path: Path, report: Report) -> None:
    """Final performance: each run, the mean and its interval, a row a method, as PNG."""
    methods = [each for each in report.methods if each.performance]
    with _style() as plt:
        figure, axes = plt.subplots(figsize=(8, 1.2 + 0.45 * len(methods)), dpi=150, layout="constrained")
        for place, each in enumerate(methods):
            assert each.performance is not None
            mean, scores = each.performance.mean, each.performance.scores
            axes.plot([mean.low, mean.high], [place, place], color=colour(place), linewidth=5, alpha=0.35)
            axes.scatter(scores, [place] * len(scores), s=14, color=colour(place), alpha=0.8, linewidth=0)
            axes.plot(mean.value, place, "D", color=colour(place), markersize=6)
        axes.set_yticks(range(len(methods)), [_wrapped(each) for each in methods])
        axes.set_ylim(len(methods) - 0.5, -0.5)
        axes.set_xlabel(f"{NAMES[report.measure]} at the end: runs, mean, and {_kinds(methods)}")
        axes.grid(alpha=0.2, axis="x", color=INK)
        save(figure, path)


def _kinds(methods: Sequence[MethodReport]) -> str:
    kinds = {each.performance.mean.kind for each in methods if each.performance}
    return kinds.pop() if len(kinds) == 1 else "interval (its kind is in report.md)"


def _draw_curves(axes: Any, methods: Sequence[MethodReport], panel: tuple[Measure, Axis]) -> None:
    """The best in front; a mean is dotted where some of its runs have ended."""
    for place, each in reversed(list(enumerate(methods))):
        mean = each.curves[panel]
        if not mean.x:
            continue
        ink, front = colour(place), 3 - place / 100
        if max(mean.runs) > 1:
            axes.fill_between(mean.x, mean.low, mean.high, color=ink, alpha=0.16, linewidth=0, zorder=1)
        marker = MARKERS[place % len(MARKERS)] if len(mean.x) < 25 else ""
        whole = _reach(mean)
        style: dict[str, Any] = {"color": ink, "marker": marker, "markersize": 3.5, "zorder": front}
        axes.plot(mean.x[:whole], mean.mean[:whole], linewidth=1.8, **style)
        if whole < len(mean.x):
            axes.plot(mean.x[whole - 1 :], mean.mean[whole - 1 :], ":", linewidth=1.5, **style)
    axes.set(xlabel=ACROSS[panel[1]], ylabel=NAMES[panel[0]])
    axes.grid(alpha=0.15, color=INK)
    from matplotlib.ticker import EngFormatter, MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    if panel[1] == "tokens":
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))


def _reach(mean: MeanCurve) -> int:
    """How many points from the left have all runs, at least one."""
    most = max(mean.runs)
    return max((i + 1 for i, runs in enumerate(mean.runs) if runs == most), default=1)


def _legend(figure: Any, methods: Sequence[MethodReport]) -> None:
    from matplotlib.lines import Line2D

    named = methods[: len(COLOURS)]
    handles = [Line2D([], [], color=colour(i), linewidth=3, label=_wrapped(each)) for i, each in enumerate(named)]
    if len(methods) > len(named):
        handles.append(Line2D([], [], color=OTHERS, linewidth=3, label=f"{len(methods) - len(named)} others"))
    figure.legend(handles=handles, loc="outside lower center", ncols=2, frameon=False)


def _wrapped(each: MethodReport) -> str:
    """A method's name in lines that leave room for the picture."""
    return "\n".join(textwrap.wrap(each.method.name, 40, max_lines=3, placeholder="…"))


@contextmanager
def _style() -> Iterator[Any]:
    """Pyplot without a screen, in the report's style."""
    plt = pyplot()
    inked = ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color")
    style: dict[Any, Any] = {
        **dict.fromkeys(inked, INK),
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.linewidth": 0.6,
        "font.size": 9,
        "svg.fonttype": "none",
        "svg.hashsalt": "tpg",
        "text.parse_math": False,
    }
    with plt.rc_context(style):
        yield plt
