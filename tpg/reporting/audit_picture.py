"""The picture of an audit: bias against noise, or both against what was varied."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

FLOOR = 1e-4
"""What is less biased than this is drawn here."""
KINDS = {"exact": "#2f855a", "exact direction": "#b7791f", "biased": "#c53030"}
COLOURS = ["#2b6cb0", "#c05621", "#2f855a", "#6b46c1", "#b83280", "#4a5568", "#d69e2e", "#319795"]


def draw_audit(path: Path, title: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """Rows of audit.json as a picture."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    with plt.rc_context({"axes.spines.top": False, "axes.spines.right": False, "font.size": 9}):
        if "batches" in rows[0]:
            figure = _measured(plt, rows)
        elif rows[0]["varied"]:
            figure = _against_what_varies(plt, rows)
        else:
            figure = _bias_against_noise(plt, rows)
    figure.suptitle(title, fontsize=9, wrap=True)
    figure.tight_layout()
    staging = path.with_suffix(".tmp.png")
    figure.savefig(staging)
    plt.close(figure)
    staging.replace(path)


def _bias_against_noise(plt: Any, rows: Sequence[Mapping[str, Any]]) -> Any:
    """A point a method: relative bias to the right, noise upwards, both logarithmic; good is below left."""
    figure, axes = plt.subplots(figsize=(8, 5), dpi=120)
    placed: list[tuple[float, float]] = []
    for row in sorted(rows, key=lambda row: row["noise_per_token"]):
        kind = "exact" if row["exact"] else "exact direction" if row["exact_direction"] else "biased"
        x, y = max(row["relative_bias"], FLOOR), max(row["noise_per_token"], 1e-9)
        axes.scatter(x, y, s=45, color=KINDS[kind], edgecolor="white", linewidth=0.8, zorder=3)
        near = sum(abs(px / x - 1) < 0.6 and abs(py / y - 1) < 0.12 for px, py in placed)
        offset = (6 + 90 * (near % 3), 4)
        axes.annotate(row["estimator"], (x, y), xytext=offset, textcoords="offset points", fontsize=8, color="#2d3748")
        placed.append((x, y))
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


def _against_what_varies(plt: Any, rows: Sequence[Mapping[str, Any]]) -> Any:
    """A line an estimator in three panels: bias, noise per generated token, noise per updated response."""
    key = next(iter(rows[0]["varied"]))
    values = list(dict.fromkeys(str(row["varied"][key]) for row in rows))
    figure, panels = plt.subplots(1, 3, figsize=(12, 4.2), dpi=120)
    measures = ("relative_bias", "noise_per_token", "noise_per_update")
    names = ("relative bias", "noise to signal per generated token", "noise to signal per updated response")
    for axes, measure, name in zip(panels, measures, names, strict=True):
        for colour, estimator in enumerate(dict.fromkeys(row["estimator"] for row in rows)):
            own = [row for row in rows if row["estimator"] == estimator]
            places = [values.index(str(row["varied"][key])) for row in own]
            heights = [max(row[measure], FLOOR) for row in own]
            axes.plot(places, heights, "o-", markersize=4, color=COLOURS[colour % len(COLOURS)], label=estimator)
        axes.set(yscale="log", title=name, xlabel=key.replace("_", " "))
        if measure != "relative_bias":
            _plain_numbers(axes)
        axes.set_xticks(range(len(values)), values, rotation=0 if len(values) < 7 else 30)
        axes.grid(alpha=0.25, which="major")
    panels[0].set_title(f"relative bias (exact is drawn at {FLOOR:g})")
    panels[-1].legend(frameon=False, fontsize=8)
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
