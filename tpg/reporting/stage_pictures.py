"""Pictures of what comes before reinforcement learning: how the loss fell, how far rewards can be believed."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tpg.reporting.drawing import pyplot, save


def draw_losses(path: Path, title: str, rows: Sequence[Mapping[str, str]], unit: str) -> None:
    """The loss by step, in training and on what is held out, and the held-out accuracy where it was measured."""
    plt = pyplot()
    figure, axes = plt.subplots(figsize=(8, 4.5), dpi=120)
    axes.plot(*_points(rows, "loss"), color="#2b6cb0", alpha=0.6, linewidth=1.5, label="training loss")
    axes.plot(*_points(rows, "eval/loss"), "o--", color="#c05621", markersize=5, label="held-out loss")
    handles, labels = axes.get_legend_handles_labels()
    steps, shares = _points(rows, "eval/accuracy")
    if steps:
        other = axes.twinx()
        other.plot(steps, shares, "s:", color="#2f855a", markersize=4, label="held-out accuracy")
        other.set(ylabel="accuracy", ylim=(0, 1))
        other.spines["top"].set_visible(False)
        handles, labels = [*handles, *other.get_legend_handles_labels()[0]], [*labels, "held-out accuracy"]
    axes.set(xlabel="optimizer step", ylabel=f"loss, {unit}", title=title)
    axes.spines["top"].set_visible(False)
    axes.grid(alpha=0.25)
    axes.legend(handles, labels, frameon=False, loc="best")
    figure.tight_layout()
    save(figure, path)


def draw_reliability(path: Path, title: str, bins: Sequence[Any], error: float) -> None:
    """The share of pairs told right over what the rewards say it is, a point a bin (`tpg.stages.calibration.Bin`)."""
    plt = pyplot()
    figure, (axes, counts) = plt.subplots(
        2, 1, figsize=(5.5, 6), dpi=120, sharex=True, gridspec_kw={"height_ratios": [4, 1]}
    )
    x, y = [each.confidence for each in bins], [each.accuracy for each in bins]
    axes.plot([0.5, 1], [0.5, 1], "--", color="#718096", linewidth=1, label="calibrated")
    axes.plot(x, y, "o-", color="#2b6cb0", label=f"held-out pairs; expected calibration error {error:.3f}")
    axes.set(ylabel="share told right", title=title, ylim=(min([0.45, *(value - 0.02 for value in y)]), 1.02))
    axes.legend(frameon=False, loc="best")
    counts.bar(x, [each.pairs for each in bins], width=0.012, color="#2b6cb0")
    counts.set(xlabel="sigmoid(|difference of rewards|)", ylabel="pairs", xlim=(0.49, 1.01))
    for each in (axes, counts):
        each.spines[["top", "right"]].set_visible(False)
        each.grid(alpha=0.25)
    figure.tight_layout()
    save(figure, path)


def _points(rows: Sequence[Mapping[str, str]], name: str) -> tuple[list[int], list[float]]:
    found = [(int(row["iteration"]), float(row[name])) for row in rows if row.get(name)]
    return [step for step, _ in found], [value for _, value in found]
