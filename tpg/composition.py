"""From a composed config to typed options, with every mistake told in one line."""

import dataclasses
import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_type_hints

from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import MissingConfigException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException
from pydantic import ValidationError

from tpg.errors import UserError, one_line
from tpg.leaves import leaves
from tpg.redaction import (
    STAR,
    is_reference,
    known_secrets,
    looks_secret,
    names_secret,
    redacted,
    refuse_literal,
    tells_secret,
)
from tpg.spelling import did_you_mean
from tpg.targets import class_of
from tpg.training.experiment import Experiment

T = TypeVar("T")
NEEDS_VALUE = "{0}: has no value and needs one; set {0}=..."


def to_experiment(config: DictConfig) -> Experiment:
    """The experiment that a config describes, checked for types, ranges and unknown keys. Loads no model.

    Raises `UserError` at the first mistake.
    """
    return built(OmegaConf.create(with_shadow_options(resolved(config))), Experiment)


def built(config: DictConfig, cls: type[T]) -> T:
    """An instance of the component `cls` from a config with its fields. Raises `UserError` at the first mistake."""
    fields = {name: _build(node, name) for name, node in _plain(config).items()}
    try:
        return cls(**fields)
    except ValidationError as error:
        raise UserError(_complaint(error, "", cls)) from None


def named_options(group: str, names: Sequence[str] | Literal["all"], key: str) -> dict[str, Any]:
    """Options of a config group by name, each as its file has it; within a Hydra job, with the user's own options.

    Raises `UserError` that begins with `key` for a name that there is not.
    """
    return {name: _build(node, group) for name, node in named_nodes(group, names, key).items()}


def option_names(group: str) -> list[str]:
    """The options of a config group; within a Hydra job."""
    return sorted(GlobalHydra.instance().config_loader().get_group_options(group))


def named_nodes(group: str, names: Sequence[str] | Literal["all"], key: str) -> dict[str, Any]:
    """What `named_options` builds, as plain values."""
    if not names:
        return {}
    loader = GlobalHydra.instance().config_loader()
    known = sorted(loader.get_group_options(group))
    nodes = {}
    for name in known if names == "all" else names:
        if name not in known:
            raise UserError(f"{key}={name}: no such option; there are {', '.join(known)}{did_you_mean(name, known)}")
        composed = loader.load_configuration("train", [f"{group}={name}"], RunMode.RUN, from_shell=False)
        nodes[name] = resolved(OmegaConf.create({group: composed[group]}))[group]
    return nodes


def with_shadow_options(plain: dict[str, Any]) -> dict[str, Any]:
    """The config with options in place of the names in `shadow_estimators`, so that it tells all by itself."""
    given = plain.get("shadow_estimators", {})
    if isinstance(given, str):
        raise UserError(f"shadow_estimators={given}: should be a list, e.g. shadow_estimators=[{given}]")
    if not isinstance(given, list):
        return plain
    return {**plain, "shadow_estimators": named_nodes("estimator", [str(name) for name in given], "shadow_estimators")}


def resolved(config: DictConfig) -> dict[str, Any]:
    """The config as plain values.

    Raises `UserError` for a key that needs a value and has none, and for a secret in plain text.
    """
    for key, value in _raw_leaves(config).items():
        refuse_literal(key, value)
    return _plain(config)


def _raw_leaves(config: DictConfig) -> dict[str, Any]:
    raw: Any = OmegaConf.to_container(config, resolve=False)
    return leaves(raw)


def _plain(config: DictConfig) -> dict[str, Any]:
    for key, value in _raw_leaves(config).items():
        if value == "???":
            raise UserError(NEEDS_VALUE.format(key))
    plain: Any = OmegaConf.to_container(config, resolve=True)
    return plain


def storable(config: DictConfig) -> dict[str, Any]:
    """What `resolved` gives, but where a secret of the environment is named its name stays, to be looked up in use."""
    plain = resolved(config)
    raw: Any = OmegaConf.to_container(config, resolve=False)
    kept: dict[str, Any] = _with_names(raw, plain, "", known_secrets(str(raw), plain))
    return kept


def _with_names(raw: Any, value: Any, key: str, secrets: set[str]) -> Any:
    """The value, with what was written in place of what tells a secret."""
    if isinstance(raw, dict):
        return {name: _with_names(child, value[name], str(name), secrets) for name, child in raw.items()}
    if isinstance(raw, list):
        return [_with_names(child, item, key, secrets) for child, item in zip(raw, value, strict=True)]
    if isinstance(raw, str) and is_reference(raw) and (names_secret(raw) or tells_secret(key, value, secrets)):
        return raw
    return value


def _build(node: Any, key: str) -> Any:
    """A node's component, its parts built first; nodes without `_target_` are built part by part."""
    if not isinstance(node, dict):
        return node
    if "_target_" not in node:
        return {name: _build(child, f"{key}.{name}") for name, child in node.items()}
    arguments = {name: _build(value, f"{key}.{name}") for name, value in node.items() if name != "_target_"}
    cls = class_of(str(node["_target_"]), f"{key}._target_={node['_target_']}")
    try:
        return cls(**arguments)
    except ValidationError as error:
        raise UserError(_complaint(error, key, cls)) from None
    except (TypeError, ValueError) as error:
        raise UserError(f"{key}: {one_line(error)}") from None


def _complaint(error: ValidationError, key: str, cls: type) -> str:
    """The first complaint: the key, what was given, what is allowed."""
    first = error.errors()[0]
    kind, value = first["type"], first["input"]
    path = ".".join(str(part) for part in (*filter(None, [key]), *first["loc"]))
    if kind == "unexpected_keyword_argument":
        *way, given = map(str, first["loc"])
        owner = _component_at(cls, way)
        names = [field.name for field in dataclasses.fields(owner)]
        has = ", ".join(names) or "no key"
        return f"{path}: no such key; {owner.__name__} has {has}{did_you_mean(given, names)}"
    if kind in ("missing", "missing_argument", "missing_keyword_only_argument"):
        return NEEDS_VALUE.format(path)
    if kind in ("is_instance_of", "dataclass_type"):
        group = f"an option of the group '{first['loc'][0]}'"
        wanted = _component_at(cls, [str(part) for part in first["loc"]]).__name__ if key else group
        return f"{path}: expected {wanted}, got {type(value).__name__}"
    allowed = re.findall(r"'([^']*)'", first.get("ctx", {}).get("expected", ""))
    message = first["msg"].removeprefix("Value error, ").removeprefix("Input ")
    shown = value if isinstance(value, str) else json.dumps(value, default=str)
    shown = STAR if looks_secret(path) else redacted(shown)
    return one_line(f"{path}={shown}: {message}{did_you_mean(str(value), allowed)}")


def _component_at(cls: Any, way: list[str]) -> Any:
    """The component that the field at the end of the way holds."""
    for name in way:
        hint = get_type_hints(cls).get(name)
        if hint is None:  # a name that the user gives, as of a guard
            continue
        cls = next(kind for kind in (hint, *get_args(hint)) if dataclasses.is_dataclass(kind))
    return cls


def composition_error(error: BaseException, overrides: Sequence[str], conf: Path) -> str:
    """What Hydra or OmegaConf refused, in one line with the nearest right spelling."""
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        group, _, given = error.missing_cfg_file.rpartition("/")
        options = error.options or sorted(file.stem for file in (conf / group).glob("*.yaml"))
        place = _place(group, given, overrides) if group else "--config-name"
        return f"{place}={given}: no such option; there are {', '.join(options)}{did_you_mean(given, options)}"
    origin = error.__cause__ or error
    if isinstance(origin, ConfigKeyError | ConfigAttributeError) and OmegaConf.is_dict(origin.parent_node):
        owner = str(origin.parent_node._get_full_key(None))
        groups = [] if owner else [folder.name for folder in conf.iterdir() if folder.is_dir()]
        names = sorted({*map(str, origin.parent_node), *groups} - {"hydra", "_target_"})
        has = f"{owner or 'a config'} has {', '.join(names) or 'no key'}"
        return f"{origin.full_key}: no such key; {has}{did_you_mean(str(origin.key), names)}"
    if isinstance(origin, OmegaConfBaseException) and origin.full_key:
        return f"{origin.full_key}: {str(origin.msg).splitlines()[0]}"
    told = one_line(str(error).split("Config search path")[0].split("See https")[0]) or one_line(origin)
    given = getattr(error, "override", None) or _blamed(told, overrides, conf)
    return f"{given}: {told}"


def _place(group: str, given: str, overrides: Sequence[str]) -> str:
    """The key that names an option of a group: the group's, or of `group@key=...` the one behind it."""
    for override in overrides:
        key, _, value = override.lstrip("+~").partition("=")
        chosen, _, package = key.partition("@")
        if chosen == group and given in re.findall(r"[^\s,\[\]'\"]+", value):
            return package or group
    return group


def _blamed(told: str, overrides: Sequence[str], conf: Path) -> str:
    """The override that a message speaks of; one that gives a group no option; else all of them."""
    keys = {override: override.lstrip("+~").split("=")[0] for override in overrides}
    named = [override for override, key in keys.items() if key in re.findall(r"[\w.@/]+", told)]
    groups = [override for override, key in keys.items() if key and (conf / key).is_dir()]
    value_of = {override: OverridesParser.create().parse_override(override).value() for override in groups}
    optionless = [override for override, value in value_of.items() if not isinstance(value, str | list)]
    return (named or optionless or [" ".join(overrides)])[0]


def find_user_modules() -> None:
    """Let configs name classes and functions of the working directory, which console scripts leave off the path."""
    here = str(Path.cwd())
    if here not in sys.path and "" not in sys.path:
        sys.path.insert(0, here)
