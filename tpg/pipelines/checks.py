"""Every stage's config, composed and checked before the first stage runs."""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from tpg.composition import built, composition_error, storable, with_shadow_options
from tpg.errors import UserError
from tpg.jobs.configs import BOOKKEEPING, CONF, experiment_of, with_groups
from tpg.pipelines.definition import Stage


def check_stage(name: str, stage: Stage, run: Path, search: str | None) -> None:
    """Raise `UserError` at the first mistake in a stage's config. What earlier stages will leave in `run` is exempt."""
    try:
        config = composed_stage(stage.entry, stage.words(run), search)
        options = OPTIONS[stage.entry](config)
        awaited = [str(run / other) for other, _ in stage.references()]
        _exempt(options, [place for place in awaited if not (Path(place) / "summary.json").is_file()])
        if config.get("run") is None:  # another run's options are not known before it is there
            options.check()
    except UserError as error:
        raise UserError(f"{name}: {error}") from None


def composed_stage(entry: str, words: Sequence[str], search: str | None) -> dict[str, Any]:
    """The resolved config of an entry with these overrides, as it would store it. Raises `UserError`."""
    overrides = [*(with_groups(words) if entry == "evaluate" else words), *([search] if search else [])]
    try:
        loader = GlobalHydra.instance().config_loader()
        composed = loader.load_configuration(entry, overrides, RunMode.RUN)
        own = OmegaConf.masked_copy(composed, [str(key) for key in composed if key != "hydra"])
        return with_shadow_options(storable(own))
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(composition_error(error, list(words), CONF)) from None


def _experiment(config: dict[str, Any]) -> Any:
    return experiment_of(config)


def _evaluation(config: dict[str, Any]) -> Any:
    from tpg.training.judging import EvaluationRun

    return _options(config, EvaluationRun)


def _supervised(config: dict[str, Any]) -> Any:
    from tpg.stages.options import SupervisedStage

    return _options(config, SupervisedStage)


def _preferences(config: dict[str, Any]) -> Any:
    from tpg.stages.options import PreferenceStage

    return _options(config, PreferenceStage)


def _options(config: dict[str, Any], cls: type) -> Any:
    """The component of an entry from those keys of its config that it has."""
    names = {field.name for field in dataclasses.fields(cls)}
    own: DictConfig = OmegaConf.create({key: value for key, value in config.items() if key in names - {*BOOKKEEPING}})
    return built(own, cls)


OPTIONS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "sft": _supervised,
    "reward": _preferences,
    "train": _experiment,
    "evaluate": _evaluation,
}
"""How an entry's config becomes what it checks."""


def _exempt(options: Any, awaited: Sequence[str]) -> None:
    """Leave what reads from these folders, which are not there yet, to be checked by the stage itself."""
    if isinstance(options, dict):
        for each in options.values():
            _exempt(each, awaited)
    if not dataclasses.is_dataclass(options):
        return
    values = [getattr(options, field.name) for field in dataclasses.fields(options)]
    if any(isinstance(value, str) and f"{value}/".startswith(f"{place}/") for value in values for place in awaited):
        object.__setattr__(options, "check", lambda *_: None)  # this one only; nobody else has it
    for value in values:
        _exempt(value, awaited)
