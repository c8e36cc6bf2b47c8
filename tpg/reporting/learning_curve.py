"""The picture of a run."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from tpg.reporting.drawing import pyplot, save


def draw_learning_curve(path: Path, title: str, rows: Sequence[Mapping[str, str]], final: Mapping[str, float]) -> None:
    """Reward by iteration, with the spread within groups, and the held-out reward where it was measured."""
    plt = pyplot()
    x = [int(row["iteration"]) for row in rows]
    reward = [float(row["reward"]) for row in rows]
    spread = [float(row["reward_std"]) for row in rows]
    figure, axes = plt.subplots(figsize=(8, 4.5), dpi=120)
    low = [r - s for r, s in zip(reward, spread, strict=True)]
    high = [r + s for r, s in zip(reward, spread, strict=True)]
    axes.fill_between(x, low, high, color="#2b6cb0", alpha=0.15, linewidth=0, label="± mean std within a group")
    axes.plot(x, reward, color="#2b6cb0", linewidth=2, label="training reward")
    measured = [(int(row["iteration"]), float(row["eval/reward"])) for row in rows if row.get("eval/reward")]
    if "eval/reward" in final:
        # Row i is measured before update i, so the final policy stands one to the right.
        measured.append((x[-1] + 1, final["eval/reward"]))
    if measured:
        axes.plot(*zip(*measured, strict=True), "o--", color="#c05621", markersize=6, label="held-out reward")
    axes.set(xlabel="iteration", ylabel="mean reward", title=title)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)
    axes.legend(frameon=False, loc="best")
    figure.tight_layout()
    save(figure, path)
