"""The picture of an audit: bias against noise, a point a method."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

FLOOR = 1e-4
"""What is less biased than this is drawn here."""


def draw_audit(path: Path, title: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """Relative bias to the right, noise to signal per generated token upwards, both logarithmic: good is below left."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(8, 5), dpi=120)
    for row in rows:
        colour = "#2f855a" if row["exact"] else "#b7791f" if row["exact_direction"] else "#c53030"
        x, y = max(row["relative_bias"], FLOOR), row["noise_per_token"]
        axes.scatter(x, y, s=45, color=colour, edgecolor="white", linewidth=0.8, zorder=3)
        axes.annotate(row["estimator"], (x, y), xytext=(6, 4), textcoords="offset points", fontsize=8, color="#2d3748")
    axes.set(xscale="log", yscale="log", title=title)
    axes.set_xlim(FLOOR / 2, max(3.0, *(2 * row["relative_bias"] for row in rows)))
    axes.set_xlabel(f"relative bias of the gradient (exact is drawn at {FLOOR:g})")
    axes.set_ylabel("noise to signal per generated token")
    kinds = (("#2f855a", "exact"), ("#b7791f", "exact direction"), ("#c53030", "biased"))
    handles = [axes.scatter([], [], s=45, color=colour, label=label) for colour, label in kinds]
    axes.legend(handles=handles, frameon=False, fontsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25, which="major")
    figure.tight_layout()
    staging = path.with_suffix(".tmp.png")
    figure.savefig(staging)
    plt.close(figure)
    staging.replace(path)
