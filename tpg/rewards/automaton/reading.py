"""An automaton from what a user wrote; every mistake is one line that names the key."""

import re
from collections.abc import Collection, Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from tpg.errors import UserError, one_line
from tpg.rewards.automaton.machine import Automaton, distances, reached
from tpg.spelling import did_you_mean

NEEDED = ("states", "start", "accepting", "events", "transitions")
KEYS = (*NEEDED, "traps")


class _Loader(yaml.SafeLoader):
    """Refuses a key that is given twice, where YAML takes the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        given = [self.construct_object(key, deep=True) for key, _ in node.value]
        twice = [key for place, key in enumerate(given) if key in given[:place]]
        if twice:
            line = node.start_mark.line + 1
            raise yaml.YAMLError(f"the key {twice[0]!r} is given twice in what begins on line {line}")
        return super().construct_mapping(node, deep)


def read_automaton(path: str, key: str) -> Automaton:
    """The automaton of a YAML file. Raises `UserError`, which begins with `key`, for whatever is wrong with it."""
    key, file = f"{key}={path}", Path(path).expanduser()
    if not file.is_file():
        near = did_you_mean(file.name, [each.name for each in file.parent.glob("*")])
        raise UserError(f"{key}: no such file{near}")
    try:
        given = _Loader(file.read_text(encoding="utf-8-sig")).get_single_data()
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise UserError(f"{key}: cannot be read as YAML: {one_line(error)}") from error
    if not isinstance(given, dict):
        raise UserError(f"{key}: holds no automaton; it needs the keys {', '.join(NEEDED)}")
    return automaton_of(given, f"{key}: ")


def automaton_of(given: Mapping[Any, Any], prefix: str) -> Automaton:
    """The automaton that keys and values describe. Raises `UserError`, which begins with `prefix`."""
    for name in given:
        if name not in KEYS:
            raise UserError(f"{prefix}{name}: no such key; there are {', '.join(KEYS)}{did_you_mean(str(name), KEYS)}")
    for name in NEEDED:
        if given.get(name) in (None, [], {}):
            raise UserError(f"{prefix}{name}: is missing or empty; an automaton needs {', '.join(NEEDED)}")
    states = _names(given["states"], f"{prefix}states")
    events = _events(given["events"], f"{prefix}events")
    start = _known(given["start"], states, f"{prefix}start", "state")
    accepting = [
        _known(each, states, f"{prefix}accepting", "state") for each in _list(given["accepting"], f"{prefix}accepting")
    ]
    traps = [
        _known(each, states, f"{prefix}traps", "state") for each in _list(given.get("traps") or [], f"{prefix}traps")
    ]
    transitions = _transitions(given["transitions"], states, events, f"{prefix}transitions")
    _check_ways(states, start, accepting, traps, transitions, prefix)
    return Automaton(tuple(states), start, frozenset(accepting), frozenset(traps), events, transitions)


def _check_ways(
    states: Sequence[str],
    start: str,
    accepting: Sequence[str],
    traps: Sequence[str],
    transitions: Mapping[str, Mapping[str, str]],
    prefix: str,
) -> None:
    """Refuse states that no events lead to, or from which none lead to acceptance."""
    if start in accepting:
        raise UserError(f"{prefix}start: {start} is accepting, so that there is no progress to make")
    for trap in traps:
        if trap in accepting or transitions.get(trap):
            does = "is accepting" if trap in accepting else "has transitions"
            raise UserError(f"{prefix}traps: {trap} {does}; a trap is a state that a response fails in for good")
    ends, comes = distances(transitions, accepting), reached(transitions, start)
    if start not in ends:
        raise UserError(f"{prefix}accepting: no events lead from start={start} to {' or '.join(accepting)}")
    for state in states:
        if state not in comes:
            raise UserError(f"{prefix}states: no events lead from start={start} to {state}")
        if state not in ends and state not in traps:
            raise UserError(
                f"{prefix}states: no events lead from {state} to {' or '.join(accepting)}; add a transition, or name it"
                " under traps if a response is to fail there for good"
            )


def _events(given: Any, key: str) -> dict[str, re.Pattern[str]]:
    found = {}
    for name, pattern in _mapping(given, key, "{name: regular expression}").items():
        own = f"{key}.{_name(name, key)}"
        if not isinstance(pattern, str):
            raise UserError(f"{own}={pattern}: should be a regular expression as text; put quotes around it")
        try:
            found[str(name)] = re.compile(pattern)
        except re.error as error:
            raise UserError(f"{own}={pattern}: is not a regular expression: {one_line(error)}") from error
        if found[str(name)].search(""):
            raise UserError(f"{own}={pattern}: is found in no text at all, so that it would happen everywhere")
    return found


def _transitions(given: Any, states: Collection[str], events: Collection[str], key: str) -> dict[str, dict[str, str]]:
    found: dict[str, dict[str, str]] = {}
    for state, led in _mapping(given, key, "{state: {event: state}}").items():
        state = _known(state, states, key, "state")
        own = f"{key}.{state}"
        found[state] = {}
        for event, after in _mapping({} if led is None else led, own, "{event: state}").items():
            event = _known(event, events, own, "event")
            if isinstance(after, (list, tuple)):
                raise UserError(
                    f"{own}.{event}={after}: leads to several states, and an automaton must be deterministic; name one"
                )
            found[state][event] = _known(after, states, f"{own}.{event}", "state")
    return found


def _names(given: Any, key: str) -> list[str]:
    names = [_name(each, key) for each in _list(given, key)]
    for place, name in enumerate(names):
        if name in names[:place]:
            raise UserError(f"{key}: {name} is named twice")
    return names


def _known(given: Any, known: Collection[str], key: str, what: str) -> str:
    name = _name(given, key)
    if name not in known:
        raise UserError(f"{key}: there is no {what} {name} but {', '.join(known)}{did_you_mean(name, known)}")
    return name


def _name(given: Any, key: str) -> str:
    """Numbers are names too; what YAML makes of on, off, yes and no is not."""
    if isinstance(given, bool) or not isinstance(given, (str, int)):
        raise UserError(f"{key}: {given!r} is no name; put quotes around it (YAML reads on, off, yes and no otherwise)")
    return str(given)


def _list(given: Any, key: str) -> Sequence[Any]:
    if not isinstance(given, (list, tuple)):
        raise UserError(f"{key}={given}: should be a list, as in [{given}]")
    return given


def _mapping(given: Any, key: str, form: str) -> Mapping[Any, Any]:
    if not isinstance(given, Mapping):
        raise UserError(f"{key}={given}: should be of the form {form}")
    return given
