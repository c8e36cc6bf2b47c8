"""Train a policy: `python -m tpg.train algorithm=grpo task=addition`. See `--help`."""

import shutil
import sys
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from tpg.errors import Interrupted, UserError
from tpg.jobs import BOOKKEEPING, CONF, job_of_sweep, new_folder, own_config, reported, run_entry


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="train")
def job(config: DictConfig) -> float:
    """Check, load, train. Returns the last iteration's reward (held out where it was evaluated)."""
    return reported(train, config)


def train(config: DictConfig) -> float:
    """What `job` does, mistakes raised."""
    from tpg.composition import find_user_modules, to_experiment
    from tpg.training.run import prepare, run
    from tpg.training.run_folder import RunFolder, write_atomically

    find_user_modules()
    path, stored, begun = _place(config)
    folder = RunFolder(path)
    options = OmegaConf.create({key: value for key, value in stored.items() if key not in BOOKKEEPING})
    experiment = to_experiment(options)
    for warning in experiment.check():
        print(f"warning: {warning}", file=sys.stderr)
    if not begun:
        RunFolder.refuse_other_run(path)
    prepared = prepare(experiment)
    if begun:
        write_atomically(folder.config, OmegaConf.to_yaml(OmegaConf.create(stored)))
    else:
        try:
            folder.create(OmegaConf.to_yaml(OmegaConf.create(stored)))
        except OSError as error:
            raise UserError(f"run_dir={path}: cannot be made: {error.strerror}") from error
    in_sweep = HydraConfig.get().mode == RunMode.MULTIRUN
    try:
        summary = run(experiment, prepared, folder, stored, job_of_sweep(config).launch.stop if in_sweep else None)
    except Interrupted:
        if not in_sweep:
            print(f"interrupted; continue with: python -m tpg.train resume={path}", file=sys.stderr)
        raise
    return float(summary.get("eval/reward", summary["reward/last"]))


def _place(config: DictConfig) -> tuple[Path, dict[str, Any], bool]:
    """The run's folder, its config, and whether it was begun before: by `resume`, or as a job of the same sweep."""
    if config.resume is not None:
        folder = _opened(Path(config.resume))
        return folder.path, _stored_config(folder.config, config), True
    hydra_config = HydraConfig.get()
    choices = hydra_config.runtime.choices
    path = new_folder(config, f"{choices.get('algorithm') or choices.get('estimator')}-{choices.get('task')}")
    composed = own_config(config)
    if hydra_config.mode != RunMode.MULTIRUN:
        return path, composed, False
    if (path / "config.yaml").is_file():
        stored: Any = OmegaConf.to_container(OmegaConf.load(path / "config.yaml"))
        return path, stored, True
    _clear_unborn(path)
    return path, composed, False


def _clear_unborn(path: Path) -> None:
    """Remove what is left of a job's folder that was being made when its process was killed."""
    left = {item.name for item in path.iterdir()} if path.is_dir() else set()
    if left and left <= {"checkpoints", "config.tmp"} and not any(path.glob("checkpoints/*")):
        shutil.rmtree(path)


def _opened(path: Path) -> Any:
    from tpg.training.run_folder import RunFolder

    try:
        return RunFolder.opened(path)
    except UserError as error:
        raise UserError(f"resume={error}") from None


def _stored_config(path: Path, given: DictConfig) -> dict[str, Any]:
    """The config of the run that is continued; only the number of iterations may be given anew."""
    stored: Any = OmegaConf.to_container(OmegaConf.load(path))
    for override in HydraConfig.get().overrides.task:
        key = override.split("=")[0]
        if key == "iterations":
            stored["iterations"] = given.iterations
        elif key != "resume":
            raise UserError(
                f"{key}: resume continues with the run's own config; only iterations= may be given beside it"
            )
    return stored


def main() -> None:
    """The console script tpg-train."""
    run_entry(job)


if __name__ == "__main__":
    main()
