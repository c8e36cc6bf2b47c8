"""The picture of an automaton: states in columns by their distance from acceptance."""

import math
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from tpg.rewards.automaton.term import AutomatonTerm
from tpg.rewards.base import Term

KINDS = {"start": "#bee3f8", "accepting": "#c6f6d5", "trap": "#fed7d7", "other": "#edf2f7"}
NEARER, OTHER = "#2b6cb0", "#a0aec0"
RADIUS, ACROSS, UP = 0.34, 1.9, 1.25
"""Of a state; from a column to the next, from a row to the next."""
INCHES = 0.75
"""A unit of the picture."""


def draw_automaton(
    path: Path,
    title: str,
    transitions: Mapping[str, Mapping[str, str]],
    distances: Mapping[str, int],
    start: str,
    accepting: Collection[str],
) -> None:
    """Arrows carry the events; those that come nearer to acceptance are blue. States without a distance are traps."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    states = list(dict.fromkeys([*transitions, *(after for led in transitions.values() for after in led.values())]))
    columns = columns_of(states, distances)
    places = {
        state: (column * ACROSS, (place - (len(own) - 1) / 2) * -UP)
        for column, own in enumerate(columns)
        for place, state in enumerate(own)
    }
    arrows = {pair: events for pair, events in edges(transitions).items() if pair[0] != pair[1]}
    middles = [_middle(places[state], places[after]) for state, after in arrows]
    left, right = min(x for x, _ in places.values()) - 1.1, max(x for x, _ in places.values()) + 0.7
    low = min(y for _, y in [*middles, *places.values()]) - 0.75
    high = max(y for _, y in [*middles, *places.values()]) + 0.8
    figure = plt.figure(figsize=((right - left) * INCHES, (high - low) * INCHES), dpi=150)
    axes = figure.add_axes((0, 0, 1, 1), xlim=(left, right), ylim=(low, high))
    for (state, after), events in arrows.items():
        _arrow(axes, places[state], places[after], events, nearer=_nearer(distances, state, after))
    for state, place in places.items():
        _state(axes, state, place, distances.get(state), start=state == start, accepting=state in accepting)
    x, y = places[start]
    axes.annotate("", (x - RADIUS, y), (x - RADIUS - 0.5, y), arrowprops={"arrowstyle": "-|>", "color": "#2d3748"})
    axes.axis("off")
    axes.text((left + right) / 2, high - 0.2, title, ha="center", va="center", fontsize=8)
    staging = path.with_suffix(".tmp.png")
    figure.savefig(staging)
    plt.close(figure)
    staging.replace(path)


def draw_automata(terms: Mapping[str, Term], folder: Path) -> list[Path]:
    """A picture `automaton-<term>.png` in the folder for every term that has an automaton; those that are new."""
    drawn = []
    for name, term in terms.items():
        path = folder / f"automaton-{name}.png"
        if isinstance(term, AutomatonTerm) and not path.exists():
            automaton = term.read(f"reward_model.{name}")
            parts = (automaton.transitions, automaton.distances, automaton.start, automaton.accepting)
            draw_automaton(path, name if term.path is None else Path(term.path).name, *parts)
            drawn.append(path)
    return drawn


def columns_of(states: Sequence[str], distances: Mapping[str, int]) -> list[list[str]]:
    """The states of each distance, the farthest first; behind the accepting ones those without a distance."""
    largest = max(distances[state] for state in states if state in distances)
    columns = [[state for state in states if distances.get(state) == number] for number in range(largest, -1, -1)]
    traps = [state for state in states if state not in distances]
    return [column for column in [*columns, traps] if column]


def edges(transitions: Mapping[str, Mapping[str, str]]) -> dict[tuple[str, str], list[str]]:
    """The events that lead from one state to another, by the two."""
    found: dict[tuple[str, str], list[str]] = {}
    for state, led in transitions.items():
        for event, after in led.items():
            found.setdefault((state, after), []).append(event)
    return found


def _nearer(distances: Mapping[str, int], state: str, after: str) -> bool:
    return after in distances and distances[after] < distances.get(state, 0)


def _state(
    axes: Any, name: str, place: tuple[float, float], distance: int | None, *, start: bool, accepting: bool
) -> None:
    from matplotlib.patches import Circle

    kind = "accepting" if accepting else "start" if start else "trap" if distance is None else "other"
    edge = "#2d3748"
    axes.add_patch(Circle(place, RADIUS, facecolor=KINDS[kind], edgecolor=edge, linewidth=1.2, zorder=3))
    if accepting:
        axes.add_patch(Circle(place, RADIUS - 0.06, facecolor="none", edgecolor=edge, linewidth=1.0, zorder=4))
    size = 8 if len(name) <= 7 else max(4.5, 56 / len(name))
    x, y = place
    axes.text(x, y + 0.06, name, ha="center", va="center", fontsize=size, zorder=5)
    told = "never" if distance is None else f"d = {distance}"
    axes.text(x, y - 0.15, told, ha="center", va="center", fontsize=5.5, color="#4a5568", zorder=5)


def _arrow(
    axes: Any, one: tuple[float, float], other: tuple[float, float], events: Sequence[str], *, nearer: bool
) -> None:
    from matplotlib.patches import FancyArrowPatch

    colour = NEARER if nearer else OTHER
    axes.add_patch(
        FancyArrowPatch(
            one,
            other,
            connectionstyle=f"arc3,rad={_bend(one, other)}",
            arrowstyle="-|>",
            mutation_scale=9,
            color=colour,
            linewidth=1.6 if nearer else 1.0,
            shrinkA=RADIUS * INCHES * 72,
            shrinkB=RADIUS * INCHES * 72,
            zorder=2,
        )
    )
    axes.text(
        *_middle(one, other),
        ", ".join(events),
        ha="center",
        va="center",
        fontsize=6.5,
        color=colour if nearer else "#4a5568",
        bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.8},
        zorder=4,
    )


def _bend(one: tuple[float, float], other: tuple[float, float]) -> float:
    """Arrows are bent to their left, more so those across other states: there and back, and what lies between, part."""
    return -0.22 if math.dist(one, other) < 1.5 * ACROSS else -0.45


def _middle(one: tuple[float, float], other: tuple[float, float]) -> tuple[float, float]:
    """Of the arc: half as far from the straight line as its control point."""
    (x0, y0), (x1, y1), half = one, other, _bend(one, other) / 2
    return (x0 + x1) / 2 + half * (y1 - y0), (y0 + y1) / 2 - half * (x1 - x0)
