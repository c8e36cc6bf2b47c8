"""What a run's config sets apart from the others', in as few words as tell them apart."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tpg.leaves import leaves

NOT_THE_METHOD = ("seed", "run_dir", "run_id", "resume", "choices", "logger", "checkpoint", "guards")
"""Keys that tell runs of one method apart, or where they are written."""
METHOD_GROUPS = ("estimator", "objective", "aggregation", "kl", "mismatch", "critic")
"""Groups whose options an algorithm selects."""
PRESETS = ("algorithm", "experiment", "debug")
BARE = ("algorithm", "estimator", "experiment", "task")
"""Groups whose options say by their name what they are."""

LONGEST = 36
"""Characters of a value in a method's name."""


@dataclass(frozen=True)
class Setting:
    """A key or group that varies between runs."""

    key: str
    values: tuple[str, ...]
    """One a run."""
    stands_for: tuple[str, ...] = ()
    """The keys that follow from a group's option."""


def flattened(config: Mapping[str, Any]) -> dict[str, str]:
    """A config's leaves by dotted key, as text; a list is a leaf."""
    return {key: shown(value) for key, value in leaves(config).items()}


def shown(value: Any) -> str:
    """A value as one would write it in an override."""
    if isinstance(value, str):
        return value
    if isinstance(value, float):
        return f"{value:g}"
    return json.dumps(value, default=str)


def method_config(config: Mapping[str, Any]) -> dict[str, str]:
    """The leaves that make the method: all but the seed and what only says which run it is."""
    return flattened({key: value for key, value in config.items() if key not in NOT_THE_METHOD})


def choices_of(config: Mapping[str, Any]) -> dict[str, str]:
    """The option of each group; the class's name where the config does not say which was chosen."""
    classes = {
        group: str(node["_target_"]).rpartition(".")[2]
        for group, node in config.items()
        if isinstance(node, Mapping) and "_target_" in node
    }
    return classes | {group: shown(option) for group, option in config.get("choices", {}).items()}


def varying(configs: Sequence[Mapping[str, Any]]) -> list[Setting]:
    """What varies: groups first, each with the keys that follow from its options, then the keys left over.

    A group is named only if a key of the config follows from it, so two ways to say the same config are one.
    """
    leaves = [method_config(config) for config in configs]
    keys = {key: None for each in leaves for key in each}
    remaining = {key: tuple(each.get(key, "not there") for each in leaves) for key in keys}
    remaining = {key: values for key, values in remaining.items() if len(set(values)) > 1}
    choices = [choices_of(config) for config in configs]
    groups = {group: None for each in choices for group in each}
    settings = []
    for group in sorted(groups, key=lambda group: PRESETS.index(group) if group in PRESETS else len(PRESETS)):
        options = tuple(each.get(group, "null") for each in choices)
        follow = [key for key, values in remaining.items() if _is_of(key, group) and _follows(values, options)]
        if len(set(options)) > 1 and follow:
            settings.append(Setting(group, options, tuple(follow)))
            remaining = {key: values for key, values in remaining.items() if key not in follow}
    return settings + [Setting(key, values) for key, values in remaining.items()]


def _is_of(key: str, group: str) -> bool:
    """Whether an option of the group may decide on the key."""
    if group == "algorithm":
        return key.split(".")[0] in METHOD_GROUPS
    return group in PRESETS or key == group or key.startswith(f"{group}.")


def _follows(values: Sequence[str], options: Sequence[str]) -> bool:
    return len(set(zip(values, options, strict=True))) == len(set(options))


def label(settings: Sequence[Setting], run: int) -> str:
    """A short name of a run's method."""
    lasts = [setting.key.rpartition(".")[2] for setting in settings]
    parts = []
    for setting, last in zip(settings, lasts, strict=True):
        value = _short(setting.values[run])
        name = last if lasts.count(last) == 1 else setting.key
        parts.append(value if setting.key in BARE and value not in ("null", "none") else f"{name}={value}")
    return " · ".join(parts)


def _short(value: str) -> str:
    """A long value by its beginning and its end, which are what tells paths apart."""
    return value if len(value) <= LONGEST else f"{value[: LONGEST // 3]}…{value[-LONGEST // 2 :]}"


def in_common(configs: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """The options that all runs share, by group."""
    first, *others = [choices_of(config) for config in configs]
    return {
        group: option
        for group, option in first.items()
        if option not in ("null", "none") and all(other.get(group) == option for other in others)
    }
