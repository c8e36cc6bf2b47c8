"""A deterministic finite automaton over events in a text, and how far each state is from acceptance."""

import re
from collections import deque
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Automaton:
    """States, and where named events lead from each. An event that a state does not name leaves it as it is."""

    states: tuple[str, ...]
    start: str
    accepting: frozenset[str]
    traps: frozenset[str]
    """States that nothing leads out of, and that are not accepting."""
    events: Mapping[str, re.Pattern[str]]
    """What each event looks like, in the order in which those that begin at one character happen."""
    transitions: Mapping[str, Mapping[str, str]]
    """By state and event, the state that it leads to."""
    distances: Mapping[str, int] = field(init=False)
    """Events from each state to the nearest accepting one; those that never get there are left out."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "distances", distances(self.transitions, self.accepting))

    def happening(self, text: str) -> list[str]:
        """Name every event of the text, in the order in which they begin. One event's occurrences do not overlap."""
        found = [
            (match.start(), place, name)
            for place, (name, pattern) in enumerate(self.events.items())
            for match in pattern.finditer(text)
        ]
        return [name for _, _, name in sorted(found)]

    def path(self, text: str) -> list[str]:
        """The states that a text leads through, the start first."""
        visited = [self.start]
        for event in self.happening(text):
            after = self.transitions.get(visited[-1], {}).get(event)
            if after is not None:
                visited.append(after)
        return visited

    def progress(self, text: str) -> float:
        """How much of the way from the start to acceptance a text has gone, from 0 to 1. (arXiv 2412.10917.)

        An event that leads from q to q' earns `max(0, d(q) - d(q'))`, and of that only what is nearer than the text has
        been before: so that the sum is the start's distance less the smallest on the path, and no cycle or detour
        earns anything twice.
        """
        whole = self.distances[self.start]
        nearest = min(self.distances.get(state, whole) for state in self.path(text))
        return (whole - nearest) / whole


def distances(transitions: Mapping[str, Mapping[str, str]], accepting: Collection[str]) -> dict[str, int]:
    """Events from each state to the nearest of the accepting, by breadth-first search backwards."""
    before: dict[str, list[str]] = {}
    for state, led in transitions.items():
        for after in led.values():
            before.setdefault(after, []).append(state)
    found = dict.fromkeys(accepting, 0)
    waiting = deque(found)
    while waiting:
        state = waiting.popleft()
        for earlier in before.get(state, []):
            if earlier not in found:
                found[earlier] = found[state] + 1
                waiting.append(earlier)
    return found


def reached(transitions: Mapping[str, Mapping[str, str]], start: str) -> set[str]:
    """The states that some events lead to from the start, itself among them."""
    found, waiting = {start}, [start]
    while waiting:
        new = set(transitions.get(waiting.pop(), {}).values()) - found
        found |= new
        waiting += new
    return found
