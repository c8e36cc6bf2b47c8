"""A config's leaves by dotted key."""

from collections.abc import Mapping
from typing import Any


def leaves(config: Mapping[Any, Any], prefix: str = "") -> dict[str, Any]:
    """What a nested mapping holds, by dotted key; a list is a leaf, and so is an empty mapping."""
    found: dict[str, Any] = {}
    for name, value in config.items():
        key = f"{prefix}{name}"
        found |= leaves(value, f"{key}.") if isinstance(value, Mapping) and value else {key: value}
    return found
