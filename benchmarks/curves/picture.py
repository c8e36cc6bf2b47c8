"""Reward over seconds, a panel for each task and a line for each run."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

from benchmarks.iteration.picture import COLORS, NAMES


def draw(path: Path, result: Mapping[str, Any]) -> None:
    """All tasks."""
    tasks = result["tasks"]
    figure, panels = plt.subplots(1, len(tasks), figsize=(1.0 + 5.4 * len(tasks), 4.2), squeeze=False)
    for panel, (name, record) in zip(panels[0], tasks.items(), strict=True):
        _panel(panel, name, record, result["target"], result["window"])
    figure.suptitle(f"{result['method']}; {result['machine']['kind']}", fontsize=10)
    figure.tight_layout()
    figure.savefig(path, dpi=130)
    plt.close(figure)


def _panel(panel: Axes, name: str, record: Mapping[str, Any], target: float, window: int) -> None:
    labelled = set()
    for run in record["runs"]:
        if not run["reward"]:
            continue
        side, rewards = run["side"], run["reward"]
        means = [sum(rewards[max(0, i - window + 1) : i + 1]) / min(window, i + 1) for i in range(len(rewards))]
        label = NAMES[side] if side not in labelled else None
        labelled.add(side)
        panel.plot(run["seconds"], means, color=COLORS[side], label=label, linewidth=1.4)
        if run["seconds_to_target"] is None:
            panel.plot(run["seconds"][-1], means[-1], "x", color=COLORS[side])
        else:
            panel.plot(run["seconds"][-1], means[-1], "o", color=COLORS[side], ms=4)
    panel.axhline(target, color="black", linestyle=":", linewidth=0.8)
    panel.set_title(name, fontsize=10)
    panel.set_xlabel("seconds of generation, rewards and update")
    panel.set_ylabel(f"training reward, mean of {window} iterations")
    panel.set_ylim(0, 1.02)
    if labelled:
        panel.legend(fontsize=8, loc="lower right")
