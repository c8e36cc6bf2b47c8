"""What a job is told to do and where: its config, its folder, and whether a folder's run is the same."""

import os
import re
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from tpg.errors import UserError
from tpg.jobs.records import LAUNCHED, Job, Launch
from tpg.leaves import leaves

if TYPE_CHECKING:
    from tpg.training.experiment import Experiment

CONF = Path(__file__).parents[1] / "conf"
CONF = CONF if CONF.is_dir() else Path(__file__).parents[2] / "conf"

BOOKKEEPING = ("run_dir", "resume", "run_id", "choices")
"""Keys of a run's config that say which run it is rather than what it does."""


def own_config(config: DictConfig, hydra: Any = None) -> dict[str, Any]:
    """The resolved config, with the options that were chosen and the run's id; a sweep's jobs with group and tags."""
    from tpg.composition import storable, with_shadow_options

    hydra = hydra or HydraConfig.get()
    plain = with_shadow_options(storable(config))
    if hydra.mode == RunMode.MULTIRUN:
        job = job_of_sweep(config, hydra)
        for logger in plain.get("logger", {}).values():
            if isinstance(logger, dict) and {"group", "tags"} <= set(logger):
                logger["group"] = logger["group"] or job.launch.folder.name
                logger["tags"] = [*logger["tags"], *(override[:64] for override in job.swept)]
    choices = {str(k): v for k, v in hydra.runtime.choices.items() if not str(k).startswith("hydra/")}
    # An agent of a W&B sweep has named the run; to be continued it must be known by that name.
    named = os.environ.get("WANDB_RUN_ID") if "WANDB_SWEEP_ID" in os.environ and hydra.mode == RunMode.RUN else None
    return {**plain, "choices": choices, "run_id": named or os.urandom(4).hex()}


def new_folder(config: DictConfig, method: str) -> Path:
    """Where the run will live; in a multirun a folder for each job, named by its overrides."""
    hydra_config = HydraConfig.get()
    if hydra_config.mode == RunMode.MULTIRUN:
        return job_of_sweep(config, hydra_config).folder
    if config.run_dir is not None:
        return Path(config.run_dir).absolute()
    # An option may be named by a path, as algorithm=../mine/grpo is.
    parent = Path("outputs") / re.sub(r"[^A-Za-z0-9_.+-]+", "-", method).strip("-.")
    name = datetime.now().strftime("%Y-%m-%d_%H-%M-%S")
    taken = sum(1 for _ in parent.glob(f"{name}*"))
    return (parent / (f"{name}-{taken}" if taken else name)).absolute()


def job_of_sweep(config: DictConfig, hydra: Any = None) -> Job:
    """The job of a multirun that this config is of."""
    hydra = hydra or HydraConfig.get()
    folder = Path(config.resume) if config.get("resume") else None
    launch = LAUNCHED[0] if LAUNCHED else Launch.opened(Path(hydra.sweep.dir))
    return Job(launch, int(hydra.job.num), list(hydra.overrides.task), folder, f"seed_{config.seed}")


def refuse_other_config(job: Job, composed: dict[str, Any]) -> None:
    """Raise `UserError` that names the keys if the job's folder holds a run of another config."""
    if not job.folder.is_dir() or not job.config.is_file():
        return
    refuse_other_run(job.folder, job.config, composed, "give the sweep another run_dir, or that run's config")


def refuse_other_run(folder: Path, config: Path, composed: dict[str, Any], remedy: str) -> None:
    """Raise `UserError` that names the keys if a folder's run has another config than this one."""
    stored: Any = OmegaConf.to_container(OmegaConf.load(config))
    now: Any = OmegaConf.to_container(OmegaConf.create(OmegaConf.to_yaml(OmegaConf.create(composed))))
    differing = differences(stored, now)
    if differing:
        first, *more = differing
        was, is_now = differing[first]
        others = f"; also other: {', '.join(more[:5])}" if more else ""
        raise UserError(f"{first}={is_now}: {folder} holds a run with {first}={was}{others}; {remedy}")


def differences(one: dict[str, Any], other: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """The keys in which two configs say other things of what a run does, with both values."""
    first, second = leaves(_doing(one)), leaves(_doing(other))
    values = {key: (first.get(key, "absent"), second.get(key, "absent")) for key in {**first, **second}}
    return {key: (value, otherwise) for key, (value, otherwise) in values.items() if value != otherwise}


def experiment_of(stored: dict[str, Any]) -> "Experiment":
    """The experiment that a run's config describes. Raises `UserError` at the first mistake."""
    from tpg.composition import to_experiment

    return to_experiment(OmegaConf.create({key: value for key, value in stored.items() if key not in BOOKKEEPING}))


def _doing(config: dict[str, Any]) -> dict[str, Any]:
    """What a config says of what the run does: without its name and how it is grouped."""
    loggers = {
        name: {key: value for key, value in logger.items() if key not in ("group", "tags")}
        for name, logger in config.get("logger", {}).items()
    }
    return {**{key: value for key, value in config.items() if key not in BOOKKEEPING}, "logger": loggers}


def with_groups(words: Sequence[str]) -> list[str]:
    """Arguments in which `against=[...]` chooses options of `reward_model`, so that their keys can be overridden."""
    return [f"reward_model@{word}" if word.startswith("against=") else word for word in words]
