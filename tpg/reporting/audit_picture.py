"""The picture of an audit: bias against noise, or both against what was varied."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tpg.reporting.drawing import pyplot, save

FLOOR = 1e-4
"""What is less biased than this is drawn here."""
KINDS = {"exact": "#2f855a", "exact direction": "#b7791f", "biased": "#c53030"}
COLOURS = ["#2b6cb0", "#c05621", "#2f855a", "#6b46c1", "#b83280", "#4a5568", "#d69e2e", "#319795"]


def draw_audit(path: Path, title: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """Rows of audit.json as a picture."""
    plt = pyplot()
    with plt.rc_context({"axes.spines.top": False, "axes.spines.right": False, "font.size": 9}):
        if "batches" in rows[0]:
            figure = _measured(plt, rows)
        elif rows[0]["varied"]:
            figure = _against_what_varies(plt, rows)
        else:
            figure = _bias_against_noise(plt, rows)
    figure.suptitle(title, fontsize=9, wrap=True)
    figure.tight_layout()
    save(figure, path)


def _bias_against_noise(plt: Any, rows: Sequence[Mapping[str, Any]]) -> Any:
    """A point a method: relative bias to the right, noise upwards, both logarithmic; good is below left."""
    figure, axes = plt.subplots(figsize=(8, 5), dpi=120)
    together: list[list[Mapping[str, Any]]] = []
    for row in sorted(rows, key=lambda row: row["noise_per_token"]):
        kind = "exact" if row["exact"] else "exact direction" if row["exact_direction"] else "biased"
        axes.scatter(*_place(row), s=45, color=KINDS[kind], edgecolor="white", linewidth=0.8, zorder=3)
        near = next((each for each in together if _all_but_coincide(each[0], row)), None)
        if near is None:
            together.append([row])
        else:
            near.append(row)
    for near in together:
        # Points that all but coincide share a label, on the side where there is room.
        names = [row["estimator"] for row in near]
        lines = [", ".join(names[start : start + 2]) for start in range(0, len(names), 2)]
        x, y = _place(near[0])
        left = x > 0.05
        axes.annotate(
            "\n".join(lines),
            (x, y),
            xytext=(-7 if left else 7, 0),
            textcoords="offset points",
            fontsize=8,
            color="#2d3748",
            ha="right" if left else "left",
            va="center",
        )
    axes.set(xscale="log", yscale="log")
    _plain_numbers(axes)
    axes.set_xlim(FLOOR / 2, max(3.0, *(2 * row["relative_bias"] for row in rows)))
    axes.set_xlabel(f"relative bias of the gradient (exact is drawn at {FLOOR:g})")
    axes.set_ylabel("noise to signal per generated token")
    axes.legend(
        handles=[axes.scatter([], [], s=45, color=colour, label=kind) for kind, colour in KINDS.items()],
        frameon=False,
        fontsize=8,
    )
    axes.grid(alpha=0.25, which="major")
    return figure


def _place(row: Mapping[str, Any]) -> tuple[float, float]:
    return max(row["relative_bias"], FLOOR), max(row["noise_per_token"], FLOOR)


def _all_but_coincide(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether two points' labels would lie on each other."""
    across, up = (math.log10(a / b) for a, b in zip(_place(one), _place(other), strict=True))
    return abs(across) < 0.3 and abs(up) < 0.035


def _against_what_varies(plt: Any, rows: Sequence[Mapping[str, Any]]) -> Any:
    """A line an estimator in four panels: bias, scale, noise per generated token, noise per updated response."""
    key = next(iter(rows[0]["varied"]))
    values = list(dict.fromkeys(str(row["varied"][key]) for row in rows))
    figure, grid = plt.subplots(2, 2, figsize=(10, 7), dpi=120)
    panels = grid.flatten()
    measures = ("relative_bias", "scale", "noise_per_token", "noise_per_update")
    names = ("", "scale", "noise to signal per generated token", "noise to signal per updated response")
    for axes, measure, name in zip(panels, measures, names, strict=True):
        for colour, estimator in enumerate(dict.fromkeys(row["estimator"] for row in rows)):
            own = [row for row in rows if row["estimator"] == estimator]
            places = [values.index(str(row["varied"][key])) for row in own]
            heights = [row[measure] if measure == "scale" else max(row[measure], FLOOR) for row in own]
            axes.plot(places, heights, "o-", markersize=4, color=COLOURS[colour % len(COLOURS)], label=estimator)
        axes.set(title=name, xlabel=key.replace("_", " "))
        if measure != "scale":
            axes.set_yscale("log")
        if measure.startswith("noise"):
            _plain_numbers(axes)
        axes.set_xticks(range(len(values)), values, rotation=0 if len(values) < 7 else 30)
        axes.grid(alpha=0.25, which="major")
    panels[0].set_title(f"relative bias (exact is drawn at {FLOOR:g})")
    panels[1].legend(frameon=False, fontsize=8)
    return figure


def _measured(plt: Any, rows: Sequence[Mapping[str, Any]]) -> Any:
    """Cosine and noise of each estimator as measured on the policy, with their 95 % intervals."""
    figure, panels = plt.subplots(1, 2, figsize=(11, 1.6 + 0.45 * len(rows)), dpi=120, sharey=True)
    measures = {
        "cosine": "cosine with the unbiased gradient of the other batches",
        "noise_per_token": "noise to signal per generated token",
    }
    for axes, (key, name) in zip(panels, measures.items(), strict=True):
        for place, row in enumerate(rows):
            axes.plot([row[f"{key}_low"], row[f"{key}_high"]], [place, place], color="#a0aec0", linewidth=3)
            axes.plot(row[key], place, "o", color="#2b6cb0")
        axes.set_xlabel(name)
        axes.grid(alpha=0.25, axis="x")
    panels[0].set_yticks(range(len(rows)), [row["estimator"] for row in rows])
    panels[0].set_ylim(len(rows) - 0.5, -0.5)
    if all(row["noise_per_token_low"] > 0 for row in rows):
        panels[1].set_xscale("log")
    return figure


def _plain_numbers(axes: Any) -> None:
    """40, not 4 x 10^1, up the left side."""
    from matplotlib.ticker import LogFormatter

    axes.yaxis.set_major_formatter(LogFormatter())
    axes.yaxis.set_minor_formatter(LogFormatter(minor_thresholds=(1.2, 0.5)))
