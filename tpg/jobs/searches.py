"""Definitions of sweeps as options of the group `sweep`: the ready ones and users' own."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig, OmegaConf

from tpg.errors import UserError, one_line
from tpg.jobs.configs import CONF
from tpg.leaves import leaves

DEFINITIONS = CONF.parent / "sweeps" / "optuna"


def register_definitions(arguments: list[str]) -> list[str]:
    """Make every definition an option of the group `sweep`; the arguments, with a file's name in place of its path."""
    for file in sorted(DEFINITIONS.glob("*.yaml")):
        _register(file)
    if not any(word.startswith(("sweep=", "-")) for word in arguments):
        names = ", ".join(sorted(file.stem for file in DEFINITIONS.glob("*.yaml")))
        raise UserError(f"sweep: name a definition, sweep=...; there are {names}, or give a file's path")
    named = []
    for word in arguments:
        path = Path(word.removeprefix("sweep="))
        if word.startswith("sweep=") and path.suffix in (".yaml", ".yml"):
            _register(path)
            word = f"sweep={path.stem}"
        named.append(word)
    return named


def _register(path: Path) -> None:
    """Raises `UserError` for a file that is not there or is no definition."""
    try:
        node = OmegaConf.load(path)
    except OSError as error:
        raise UserError(f"sweep={path}: {error.strerror}") from None
    except Exception as error:  # whatever the parser raises
        raise UserError(f"sweep={path}: {one_line(error)}") from None
    if not isinstance(node, DictConfig) or not isinstance(node.get("sweep"), DictConfig):
        raise UserError(f"sweep={path}: has no key sweep, which holds parameters, objectives and trials")
    ConfigStore.instance().store(
        group="sweep", name=path.stem, node=node, package="_global_", provider=str(path.parent)
    )


def fixed_overrides(name: str, given: Sequence[str]) -> list[str]:
    """What every trial is given, as arguments of tpg.train: what the definition sets, then the command line."""
    from tpg.searching.parameters import override

    loader: Any = GlobalHydra.instance().config_loader()
    definition = loader.repository.load_config(f"sweep/{name}")
    groups = {
        default.group.lstrip("/"): default.value
        for default in definition.defaults_list
        if getattr(default, "override", False) and not default.group.lstrip("/").startswith("sweep/")
    }
    plain: Any = OmegaConf.to_container(definition.config)
    values = leaves({key: value for key, value in plain.items() if key != "sweep"})
    given_values = {key: value for key, value in values.items() if value != {}}
    own = {key: override(key, _plain(value)) for key, value in {**groups, **given_values}.items()}
    stated = {
        key_of(word): word for word in given if key_of(word).split(".")[0].split("/")[0] not in ("sweep", "hydra")
    }
    stated.pop("run_dir", None)
    return [*(text for key, text in own.items() if key not in stated), *stated.values()]


def _plain(value: Any) -> Any:
    return OmegaConf.to_container(value) if OmegaConf.is_config(value) else value


def key_of(override: str) -> str:
    """The key or group that an argument gives a value."""
    return override.lstrip("+~").split("=")[0]
