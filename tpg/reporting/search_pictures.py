"""The pictures of a search: which parameter matters, and which values go with which outcome."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tpg.reporting.drawing import pyplot, save

COLOURS = ["#2b6cb0", "#c05621", "#2f855a", "#6b46c1"]


def draw_importances(path: Path, title: str, importances: Mapping[str, Mapping[str, float]]) -> None:
    """A group of bars a parameter, one bar an objective; shares of 1."""
    plt = pyplot()
    parameters = list(next(iter(importances.values())))
    figure, axes = plt.subplots(figsize=(8, 1.4 + 0.5 * len(parameters)), dpi=120)
    thick = 0.8 / len(importances)
    for place, (objective, shares) in enumerate(importances.items()):
        heights = [i + (place - (len(importances) - 1) / 2) * thick for i in range(len(parameters))]
        lengths = [shares.get(parameter, 0.0) for parameter in parameters]
        axes.barh(heights, lengths, height=thick * 0.9, color=COLOURS[place % len(COLOURS)], label=objective)
        for height, length in zip(heights, lengths, strict=True):
            axes.annotate(f"{length:.2f}", (length, height), xytext=(4, 0), textcoords="offset points", va="center")
    axes.set_yticks(range(len(parameters)), parameters)
    axes.invert_yaxis()
    axes.set_xlim(0, 1.1 * max(max(shares.values()) for shares in importances.values()))
    axes.set(title=title, xlabel="share of importance (PED-ANOVA)")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="lower right")
    figure.tight_layout()
    save(figure, path)


def draw_parallel_coordinates(
    path: Path,
    title: str,
    names: Sequence[str],
    rows: Sequence[Sequence[Any]],
    logarithmic: set[str],
    listed: Mapping[str, Sequence[Any]],
    objective: str,
    direction: str,
) -> None:
    """A line a trial through a scale for each parameter and objective; the better, the darker and thicker."""
    plt = pyplot()
    scales = [_Scale([row[i] for row in rows], name in logarithmic, listed.get(name)) for i, name in enumerate(names)]
    figure, axes = plt.subplots(figsize=(max(6, 1.9 * len(names)), 5), dpi=120)
    values = [row[names.index(objective)] for row in rows]
    if direction == "minimize":
        values = [-value for value in values]
    low, spread = min(values), (max(values) - min(values)) or 1.0
    colours = plt.get_cmap("YlGnBu")
    for value, row in sorted(zip(values, rows, strict=True), key=lambda pair: pair[0]):
        good = (value - low) / spread
        heights = [scale.height(entry) for scale, entry in zip(scales, row, strict=True)]
        axes.plot(range(len(names)), heights, color=colours(0.2 + 0.8 * good), linewidth=1 + 1.2 * good, alpha=0.9)
    for place, scale in enumerate(scales):
        axes.axvline(place, color="#4a5568", linewidth=0.8, zorder=0)
        for height, text in scale.ticks():
            axes.annotate(text, (place, height), xytext=(4, 0), textcoords="offset points", fontsize=8, va="center",
                          bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.7, "pad": 0.5})  # fmt: skip
    axes.set_xticks(range(len(names)), [name.replace(".", ".\n", 1) for name in names], fontsize=8)
    axes.set_xlim(-0.1, len(names) - 0.6)
    axes.set_yticks([])
    axes.spines[:].set_visible(False)
    axes.set_title(f"{title}; darker is better by {objective}", fontsize=10)
    figure.tight_layout()
    save(figure, path)


class _Scale:
    """From a column's values to heights between 0 and 1."""

    def __init__(self, values: Sequence[Any], logarithmic: bool, listed: Sequence[Any] | None) -> None:
        self.listed = None if listed is None else [str(value) for value in listed]
        self.logarithmic = logarithmic
        numbers = [0.0] if listed is not None else [self._place(value) for value in values]
        self.low, self.high = min(numbers), max(numbers)

    def height(self, value: Any) -> float:
        if self.listed is not None:
            return self.listed.index(str(value)) / max(len(self.listed) - 1, 1)
        return (self._place(value) - self.low) / (self.high - self.low) if self.high > self.low else 0.5

    def ticks(self) -> list[tuple[float, str]]:
        if self.listed is not None:
            return [(self.height(value), value) for value in self.listed]
        if self.high == self.low:
            return [(0.5, self._text(self.low))]
        shares = [0.0, 0.25, 0.5, 0.75, 1.0]
        return [(share, self._text(self.low + share * (self.high - self.low))) for share in shares]

    def _place(self, value: float) -> float:
        return math.log(value) if self.logarithmic else float(value)

    def _text(self, place: float) -> str:
        return f"{math.exp(place) if self.logarithmic else place:.3g}"
