"""Command lines of `key=value`, checked by a component; mistakes in one line."""

import dataclasses
import sys
from collections.abc import Sequence
from typing import Any, TypeVar

from pydantic.fields import FieldInfo

T = TypeVar("T")


def parsed(arguments: Sequence[str], cls: type[T], command: str) -> T:
    """The options that the arguments give. `--help` prints the keys and ends.

    Raises `UserError` in one line at the first mistake.
    """
    import yaml
    from omegaconf import OmegaConf

    from tpg.errors import UserError

    if any(argument in ("--help", "-h") for argument in arguments):
        print(help_of(cls, command))
        sys.exit(0)
    given: dict[str, Any] = {}
    for argument in arguments:
        key, equals, text = argument.partition("=")
        if not equals or not key:
            raise UserError(f"{argument}: should be key=value; `{command} --help` lists the keys")
        if key in given:
            raise UserError(f"{key}: is given twice")
        try:
            given[key] = yaml.safe_load(text) if text else None
        except yaml.YAMLError:
            raise UserError(f"{argument}: {text!r} is no value; a list is [a,b]") from None

    from tpg.composition import built

    return built(OmegaConf.create(given), cls)


def help_of(cls: type, command: str) -> str:
    """The command's keys with their defaults and meanings."""
    lines = [f"{command} key=value ...", "", (cls.__doc__ or "").strip(), ""]
    for field in dataclasses.fields(cls):
        info: Any = field.default
        default = info.default if isinstance(info, FieldInfo) else info
        described = (info.description or "") if isinstance(info, FieldInfo) else ""
        if isinstance(info, FieldInfo) and info.default_factory is not None:
            default = info.default_factory()  # type: ignore[call-arg]
        lines.append(f"  {field.name + '=' + _shown(default):32} {described}")
    return "\n".join(lines)


def _shown(value: Any) -> str:
    if isinstance(value, list):
        return "[" + ",".join(map(_shown, value)) + "]"
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def recorded(options: Any) -> dict[str, Any]:
    """The options as a result keeps them: all but folders of this machine."""
    return {key: value for key, value in dataclasses.asdict(options).items() if key not in ("run_dir", "trl")}
