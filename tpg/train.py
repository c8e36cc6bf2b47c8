"""Train a policy: `python -m tpg.train algorithm=grpo task=addition`. See `--help`."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import setup_globals
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from tpg.errors import Interrupted, UserError
from tpg.jobs.configs import CONF, differences, experiment_of, job_of_sweep, new_folder, own_config, refuse_other_run
from tpg.jobs.continuing import clear_unborn, continued_run, say_how_to_continue
from tpg.jobs.entry import refuse_ranks, reported, run_entry
from tpg.launching import slurm

if TYPE_CHECKING:
    from tpg.launching.spec import RunSpec
    from tpg.training.parallel.ranks import Ranks
    from tpg.training.trainer import TrainerOptions


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="train")
def job(config: DictConfig) -> float:
    """Check, load, train. Returns the last iteration's reward (held out where it was evaluated)."""
    return reported(train, config)


def train(config: DictConfig) -> float:
    """What `job` does, mistakes raised."""
    from tpg.composition import find_user_modules
    from tpg.launching.processes import perform
    from tpg.launching.spec import carry_out
    from tpg.training.parallel.ranks import Ranks, started_together

    find_user_modules()
    in_sweep = HydraConfig.get().mode == RunMode.MULTIRUN
    if in_sweep:
        refuse_ranks()
    if started_together() > 1:
        spec, ranks = _taking_part(config)
    else:
        spec, warnings = _spec(config)
        ranks = Ranks()
        _warn(warnings)
    try:
        with _told_once(ranks):
            summary = perform(spec) if ranks.world == 1 else carry_out(spec, ranks)
    except Interrupted as interruption:
        number = int(interruption.args[0])
        if not in_sweep:
            requeue = spec.experiment.checkpoint.requeue
            ranks.from_main(lambda: say_how_to_continue("tpg.train", config, spec.path, number, requeue=requeue))
        raise
    return float(summary.get("eval/reward", summary["reward/last"]))


def _spec(config: DictConfig) -> "tuple[RunSpec, list[str]]":
    """What is to be run, checked, and the warnings of it."""
    from tpg.launching.spec import RunSpec
    from tpg.training.run_folder import RunFolder

    path, stored, begun = _place(config)
    experiment = experiment_of(stored)
    warnings = experiment.check()
    if not begun:
        RunFolder.refuse_other_run(path)
    stop_file = job_of_sweep(config).launch.stop if HydraConfig.get().mode == RunMode.MULTIRUN else None
    text = OmegaConf.to_yaml(OmegaConf.create(stored))
    return RunSpec(experiment, stored, text, path, begun, stop_file), warnings


def _taking_part(config: DictConfig) -> "tuple[RunSpec, Ranks]":
    """The run that this process and those it was started with carry out: as rank 0 composed it, if all did alike."""
    from tpg.launching.exchange import keep_quiet
    from tpg.launching.spec import RunSpec
    from tpg.training.parallel.ranks import joined
    from tpg.training.trainer import TrainerOptions

    own: tuple[RunSpec, list[str]] | Exception
    try:
        own = _spec(config)
    except Exception as error:  # told by rank 0, once all have met
        own = error
    trainer = TrainerOptions(accelerator="cpu") if isinstance(own, Exception) else own[0].experiment.trainer
    ranks = joined(trainer.device_type, trainer.tensor_parallel_size, trainer.timeout_s)
    if not ranks.main:
        keep_quiet(ranks.rank)

    def described() -> dict[str, Any]:
        if isinstance(own, Exception):
            raise own
        spec, warnings = own
        _check_count(trainer, ranks.world)
        compared = dict(spec.config) if spec.begun else _timeless(config)
        told = {"text": spec.text, "path": spec.path, "begun": spec.begun, "warnings": warnings}
        return {**told, "compared": OmegaConf.to_yaml(OmegaConf.create(compared))}

    with _told_once(ranks):
        main, *others = ranks.each(described)
        # Each finds it for itself; together they know that all have.
        ranks.each(lambda: _refuse_differences([OmegaConf.create(each["compared"]) for each in (main, *others)]))
        stored: Any = OmegaConf.to_container(OmegaConf.create(main["text"]))
        spec = RunSpec(experiment_of(stored), stored, main["text"], main["path"], main["begun"])
    if ranks.main:
        _warn(main["warnings"])
    return spec, ranks


def _check_count(trainer: "TrainerOptions", world: int) -> None:
    if trainer.processes != world:
        remedy = f"start {trainer.processes}" if trainer.processes > 1 else "start one alone"
        strategy = " trainer=ddp" if trainer.strategy == "single" else ""
        raise UserError(
            f"trainer.devices={trainer.devices}: {world} processes were started together, and trainer.devices x"
            f" trainer.num_nodes is {trainer.processes}; {remedy}, or give{strategy} trainer.devices=<those of a node>"
        )


def _timeless(config: DictConfig) -> dict[str, Any]:
    """The config as every process composes it, whenever that is."""
    OmegaConf.register_new_resolver("now", lambda pattern: pattern, replace=True)
    try:
        return own_config(config)
    finally:
        setup_globals()


def _refuse_differences(configs: list[DictConfig]) -> None:
    """Raise `UserError` for the first key in which a rank's config is not rank 0's."""
    main, *others = [OmegaConf.to_container(config) for config in configs]
    for rank, other in enumerate(others, start=1):
        for key, (value, otherwise) in differences(main, other).items():  # type: ignore[arg-type]
            raise UserError(
                f"{key}: rank 0 was given {value} and rank {rank} {otherwise}; start every process with the same"
                " arguments"
            )


@contextmanager
def _told_once(ranks: "Ranks") -> Iterator[None]:
    """Leave it to the main process to tell a mistake that ends all, if it knows of it."""
    try:
        yield
    except UserError as error:
        if ranks.main or not hasattr(error, "known_to_all"):
            raise
        sys.exit(2)


def _warn(warnings: list[str]) -> None:
    for warning in warnings:
        print(f"warning: {warning}", file=sys.stderr)


def _place(config: DictConfig) -> tuple[Path, dict[str, Any], bool]:
    """The run's folder, its config, and whether it was begun before: by `resume`, or as a job of the same sweep."""
    if config.resume is not None:
        return *continued_run(config, HydraConfig.get().overrides.task), True
    hydra_config = HydraConfig.get()
    choices = hydra_config.runtime.choices
    path = new_folder(config, f"{choices.get('algorithm') or choices.get('estimator')}-{choices.get('task')}")
    composed = own_config(config)
    if hydra_config.mode != RunMode.MULTIRUN:
        if slurm.restarted():
            return _place_of_restarted(path, composed)
        clear_unborn(path)
        return path, composed, False
    if (path / "config.yaml").is_file():
        stored: Any = OmegaConf.to_container(OmegaConf.load(path / "config.yaml"))
        return path, stored, True
    clear_unborn(path)
    return path, composed, False


def _place_of_restarted(path: Path, composed: dict[str, Any]) -> tuple[Path, dict[str, Any], bool]:
    """Where SLURM starts a job again: the same command continues the run that it began."""
    if not (path / "config.yaml").is_file():
        clear_unborn(path)
        return path, composed, False
    refuse_other_run(path, path / "config.yaml", composed, "give another run_dir, or that run's config")
    stored: Any = OmegaConf.to_container(OmegaConf.load(path / "config.yaml"))
    return path, stored, True


def main() -> None:
    """The console script tpg-train."""
    run_entry(job)


if __name__ == "__main__":
    main()
