"""Pictures are drawn without a screen, and are whole when they appear."""

from pathlib import Path
from typing import Any


def pyplot() -> Any:
    """Matplotlib's, which is loaded when there is something to draw."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    return plt


def save(figure: Any, path: Path) -> None:
    """Write a figure to a PNG and close it."""
    staging = path.with_suffix(".tmp.png")
    figure.savefig(staging)
    pyplot().close(figure)
    staging.replace(path)
