"""From a composed config to typed options, with every mistake told in one line."""

import difflib
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from hydra.utils import get_class
from omegaconf import DictConfig, OmegaConf
from pydantic import ValidationError

from tpg.errors import UserError
from tpg.spelling import did_you_mean
from tpg.training.experiment import Experiment


def to_experiment(config: DictConfig) -> Experiment:
    """The experiment that a config describes, checked for types, ranges and unknown keys. Loads no model.

    Raises `UserError` at the first mistake.
    """
    missing = OmegaConf.missing_keys(config)
    if missing:
        key = min(missing)
        raise UserError(f"{key}: has no value and needs one; set {key}=...")
    plain: Any = OmegaConf.to_container(config, resolve=True)
    fields = {name: _build(node, name) for name, node in plain.items()}
    try:
        return Experiment(**fields)
    except ValidationError as error:
        raise UserError(_one_line(error, "", Experiment)) from None


def _build(node: Any, key: str) -> Any:
    """A node's component; nodes without `_target_` are built part by part."""
    if not isinstance(node, dict):
        return node
    if "_target_" not in node:
        return {name: _build(child, f"{key}.{name}") for name, child in node.items()}
    arguments = {name: value for name, value in node.items() if name != "_target_"}
    target = str(node["_target_"])
    if target.split(".")[0] in sys.stdlib_module_names:
        raise UserError(f"{key}._target_={target}: only classes of tpg, torch, lightning, transformers or your own")
    try:
        cls = get_class(target)
    except Exception as error:
        raise UserError(f"{key}._target_={target}: {' '.join(str(error.__cause__ or error).split())}") from None
    try:
        return cls(**arguments)
    except ValidationError as error:
        raise UserError(_one_line(error, key, cls)) from None
    except UserError:
        raise
    except (TypeError, ValueError) as error:
        raise UserError(f"{key}: {' '.join(str(error).split())}") from None


def _one_line(error: ValidationError, key: str, cls: Any) -> str:
    """The first complaint: the key, what was given, what is allowed."""
    first = error.errors()[0]
    path = ".".join(str(part) for part in (*filter(None, [key]), *first["loc"]))
    names = list(getattr(cls, "__dataclass_fields__", {}))
    if first["type"] == "unexpected_keyword_argument":
        given = str(first["loc"][-1])
        return f"{path}: no such key; {cls.__name__} has {', '.join(names)}{did_you_mean(given, names)}"
    if first["type"] in ("missing", "missing_argument", "missing_keyword_only_argument"):
        return f"{path}: has no value and needs one; set {path}=..."
    message = first["msg"].removeprefix("Value error, ").removeprefix("Input ")
    if first["type"] == "is_instance_of" or first["type"] == "dataclass_type":
        message = f"expected an option of the group '{first['loc'][0]}'"
        return f"{path}: {message}, got {type(first['input']).__name__}"
    return f"{path}={first['input']!r}: {message}"


def composition_error(error: Exception, overrides: list[str], conf: Path) -> str:
    """What Hydra refused, in one line with the nearest right spelling."""
    options = getattr(error, "options", None)
    missing_file = getattr(error, "missing_cfg_file", None)
    if options and missing_file:
        group, _, given = str(missing_file).rpartition("/")
        return f"{group}={given}: no such option; there are {', '.join(options)}{did_you_mean(given, options)}"
    text = " ".join(str(error).split())
    for override in overrides:
        key = override.lstrip("+~").split("=")[0]
        if f"'{key}'" in text or f"Could not override '{key}'" in text or f"override {key}" in text:
            return f"{key}: no such key or group{did_you_mean(key, _known_keys(conf, key))}"
    return text.split(" To append")[0].split(" Set the environment")[0]


def _known_keys(conf: Path, key: str) -> Iterable[str]:
    """Every group, every top-level key, and every key of the options of the group that `key` begins with."""
    groups = sorted(folder.name for folder in conf.iterdir() if folder.is_dir())
    top = [str(name) for name in OmegaConf.load(conf / "train.yaml") if name != "defaults"]  # type: ignore[union-attr]
    group, _, _ = key.partition(".")
    if group not in groups:
        near = difflib.get_close_matches(group, [*groups, *top], 1)
        group = near[0] if near else ""
    inside = []
    for file in sorted((conf / group).glob("*.yaml")) if group in groups else []:
        inside += [f"{group}.{name}" for name in _leaves(OmegaConf.to_container(OmegaConf.load(file)))]
    return list(dict.fromkeys([*groups, *top, *inside]))


def _leaves(node: Any, prefix: str = "") -> list[str]:
    if not isinstance(node, dict):
        return []
    names = [name for name in node if isinstance(name, str) and name not in ("_target_", "defaults")]
    return [prefix + name for name in names] + [
        leaf for name in names for leaf in _leaves(node[name], f"{prefix}{name}.")
    ]


def find_user_modules() -> None:
    """Let configs name classes and functions of the working directory, which console scripts leave off the path."""
    here = str(Path.cwd())
    if here not in sys.path and "" not in sys.path:
        sys.path.insert(0, here)
