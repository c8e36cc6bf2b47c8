"""The picture of an evaluation: the best of n over its divergence, and how far a reward can be believed."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tpg.reporting.drawing import pyplot, save


def draw_judging(path: Path, title: str, curve: Sequence[Mapping[str, Any]], agreement: Mapping[str, Any]) -> bool:
    """What there is of both, as the report has it; whether there was anything to draw."""
    plt = pyplot()
    panels: list[tuple[Any, Any]] = [(_curve, curve)] if curve else []
    if agreement.get("bins"):
        panels.append((_reliability, agreement))
    if not panels:
        return False
    figure, places = plt.subplots(1, len(panels), figsize=(5.5 * len(panels), 4.5), dpi=120, squeeze=False)
    for axes, (draw, drawn) in zip(places[0], panels, strict=True):
        draw(axes, drawn)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25)
        axes.legend(frameon=False, loc="best", fontsize=8)
    figure.suptitle(title, fontsize=9)
    figure.tight_layout()
    save(figure, path)
    return True


def _curve(axes: Any, curve: Sequence[Mapping[str, Any]]) -> None:
    for name, colour, label in (("reward", "#2b6cb0", "the reward that chooses"), ("truth", "#c05621", "against")):
        points = [point for point in curve if point[name] is not None]
        if points:
            errors = [point[f"{name}_error"] or 0.0 for point in points]
            heights = [point[name] for point in points]
            axes.errorbar(
                [point["kl"] for point in points], heights, yerr=errors, fmt="o-", color=colour, label=label, capsize=2
            )
    for point in curve:
        where: Any = (point["kl"], point["reward"])
        axes.annotate(f"n={point['n']}", where, xytext=(4, -10), textcoords="offset points", fontsize=7)
    axes.set(xlabel="KL of the best of n from the policy, nats (log n - (n - 1)/n)", ylabel="mean over prompts")


def _reliability(axes: Any, agreement: Mapping[str, Any]) -> None:
    bins = agreement["bins"]
    largest = max(each["responses"] for each in bins)
    axes.plot([0, 1], [0, 1], "--", color="#718096", linewidth=1, label="calibrated")
    axes.plot(
        [each["confidence"] for each in bins],
        [each["share"] for each in bins],
        "-",
        color="#2b6cb0",
        label=f"expected calibration error {agreement['calibration_error']:.3f}",
    )
    axes.scatter(
        [each["confidence"] for each in bins],
        [each["share"] for each in bins],
        s=[15 + 85 * each["responses"] / largest for each in bins],
        color="#2b6cb0",
        zorder=3,
    )
    said = "logistic fit of the reward" if agreement["fitted"] else "reward"
    axes.set(xlabel=f"probability of being right: {said}", ylabel="share that is right")
    axes.set(xlim=(-0.03, 1.03), ylim=(-0.03, 1.03))
