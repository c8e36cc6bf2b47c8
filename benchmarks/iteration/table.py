"""The figures on the screen."""

from collections.abc import Mapping
from typing import Any

from rich.table import Table

NAMES = {"trl": "TRL", "ours": "tpg"}
ROWS = {
    "generate": "generation, s",
    "update": "update, s",
    "iteration": "iteration, s",
    "generated_per_second": "tokens/s, generation",
    "tokens_per_second": "tokens/s, iteration",
    "peak_memory": "peak memory, GB",
}


def table_of(title: str, record: Mapping[str, Any]) -> Table:
    """A workload's medians, how many times better ours are, the least seconds possible and the share of it reached."""
    both = "trl" in record
    sides = ["trl", "ours"] if both else ["ours"]
    table = Table(title=title)
    table.add_column("median")
    names = [NAMES[side] for side in sides] + (["gain"] if both else []) + ["floor"]
    for name in names + [f"{NAMES[side]} of floor" for side in sides]:
        table.add_column(name, justify="right")
    medians = {side: record[side]["median"] for side in sides}
    floor, shares = record["floor"] or {}, record["floor_share"]
    for key, label in ROWS.items():
        cells = [label, *(_number(medians[side], key) for side in sides)]
        if both:
            cells.append(_shown(gain(record, key)))
        cells.append(_shown(floor.get(key)))
        cells += [_percent((shares[side] or {}).get(key)) for side in sides]
        table.add_row(*cells)
    return table


def gain(record: Mapping[str, Any], key: str) -> float | None:
    """TRL's over ours for seconds and bytes, ours over TRL's for tokens/s: above 1 ours is better."""
    if key in record["ratios"]:
        ratio: float | None = record["ratios"][key]
        return ratio
    trl, ours = record["trl"]["median"], record["ours"]["median"]
    return ours[key] / trl[key] if trl and ours else None


def sweep_table(key: str, points: list[Mapping[str, Any]]) -> Table:
    """An iteration's seconds as one key grows."""
    both = any("trl" in point for point in points)
    table = Table(title=f"iteration, s, as {key} grows")
    table.add_column(key, justify="right")
    for name in (["TRL"] if both else []) + ["ours"] + (["TRL / ours"] if both else []):
        table.add_column(name, justify="right")
    for point in points:
        cells = [str(point["value"])]
        for side in (["trl"] if both else []) + ["ours"]:
            found = point.get(side, {})
            medians = found.get("median")
            failed = "out of memory" if found.get("out_of_memory") else "failed"
            cells.append(_shown(medians["iteration"]) if medians else failed)
        table.add_row(*cells, *([_shown(point["ratios"]["iteration"])] if both else []))
    return table


def _number(medians: Mapping[str, float] | None, key: str) -> str:
    if medians is None:
        return "failed"
    return _shown(medians[key] / 1e9 if key == "peak_memory" else medians[key])


def _percent(share: float | None) -> str:
    return "" if share is None else f"{share:.0%}" if share >= 0.1 else f"{share:.1%}"


def _shown(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}" if value < 1000 else f"{value:.0f}"
