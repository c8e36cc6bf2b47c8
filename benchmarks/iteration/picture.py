"""The figures as a picture."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

NAMES = {"trl": "TRL", "ours": "tpg"}
COLORS = {"trl": "#b07d48", "ours": "#2f6f9f"}
LABELS = {
    "response_tokens": "response tokens",
    "responses_per_prompt": "responses a prompt",
    "prompt_tokens": "prompt tokens",
    "model": "model",
}


def draw(path: Path, result: Mapping[str, Any]) -> None:
    """Bars of an iteration by stage for every method, then a panel for each sweep."""
    sweeps = result["sweeps"]
    count = 1 + len(sweeps)
    figure, panels = plt.subplots(1, count, figsize=(2.2 + 4.6 * count, 4.4), squeeze=False, layout="constrained")
    _bars(panels[0, 0], result["methods"])
    for panel, sweep in zip(panels[0, 1:], sweeps.values(), strict=True):
        _growth(panel, sweep["key"], sweep["points"])
    told = result["workload"]
    figure.suptitle(
        f"{told['model']}: {told['prompts']} prompts x {told['responses_per_prompt']} responses x"
        f" {told['response_tokens']} tokens, prompts of {told['prompt_tokens']}, {told['precision']};"
        f" {result['machine']['kind']}",
        fontsize=10,
    )
    figure.savefig(path, dpi=130)
    plt.close(figure)


def _bars(panel: Axes, methods: Mapping[str, Any]) -> None:
    ticks, labels, least = [], [], None
    place = 0.0
    for method, record in methods.items():
        for side in ("trl", "ours"):
            medians = record.get(side, {}).get("median")
            if medians is None:
                continue
            panel.bar(place, medians["generate"], color=COLORS[side], label=None, width=0.8)
            panel.bar(
                place,
                medians["update"],
                bottom=medians["generate"],
                color=COLORS[side],
                alpha=0.55,
                hatch="//",
                width=0.8,
            )
            top = max(medians["iteration"], medians["generate"] + medians["update"])
            panel.text(place, top, f"{medians['iteration']:.3g}", ha="center", va="bottom", fontsize=8)
            ticks.append(place)
            labels.append(f"{method}\n{NAMES[side]}")
            place += 1
        least = record["floor"] or least
        place += 0.6
    if least:
        panel.axhline(least["iteration"], color="black", linestyle=":", label="least possible")
    panel.bar(0, 0, color="grey", label="generation")
    panel.bar(0, 0, color="grey", alpha=0.55, hatch="//", label="update")
    panel.set_xticks(ticks, labels)
    panel.set_ylabel("seconds, median")
    panel.set_title("one iteration", fontsize=10)
    panel.margins(y=0.12)
    panel.legend(fontsize=8)


def _growth(panel: Axes, key: str, points: list[Mapping[str, Any]]) -> None:
    values = [str(point["value"]) for point in points]
    for side in ("trl", "ours"):
        for stage, style in (("iteration", "-"), ("generate", "--"), ("update", ":")):
            found = [
                (i, point[side]["median"][stage]) for i, point in enumerate(points) if point.get(side, {}).get("median")
            ]
            if found:
                places, seconds = zip(*found, strict=True)
                panel.plot(
                    places, seconds, style, marker="o", ms=3, color=COLORS[side], label=f"{NAMES[side]}, {stage}"
                )
        lost = [i for i, point in enumerate(points) if side in point and not point[side]["median"]]
        for i in lost:
            panel.text(i, 0.02, f"{NAMES[side]}: none", transform=panel.get_xaxis_transform(), ha="center", fontsize=7)
    panel.set_yscale("log")
    panel.set_xticks(range(len(values)), values)
    panel.set_xlabel(LABELS[key])
    panel.set_ylabel("seconds, median")
    panel.set_title(f"growth with {LABELS[key]}", fontsize=10)
    if panel.get_legend_handles_labels()[0]:
        panel.legend(fontsize=7)
