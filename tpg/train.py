"""Train a policy: `python -m tpg.train algorithm=grpo task=addition`. See `--help`."""

import math
import os
import sys
import traceback
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from tpg.errors import Interrupted, UserError

CONF = Path(__file__).parent / "conf"
CONF = CONF if CONF.is_dir() else Path(__file__).parent.parent / "conf"


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
    if config.resume is not None:
        folder = _opened(Path(config.resume))
        stored = _stored_config(folder.config, config)
    else:
        choices = HydraConfig.get().runtime.choices
        method = f"{choices.get('algorithm') or choices.get('estimator')}-{choices.get('task')}"
        folder = RunFolder(new_folder(config, method))
        stored = own_config(config)
    options = OmegaConf.create({key: value for key, value in stored.items() if key not in BOOKKEEPING})
    experiment = to_experiment(options)
    for warning in experiment.check():
        print(f"warning: {warning}", file=sys.stderr)
    if config.resume is None:
        RunFolder.refuse_other_run(folder.path)
    prepared = prepare(experiment)
    if config.resume is not None:
        write_atomically(folder.config, OmegaConf.to_yaml(OmegaConf.create(stored)))
    else:
        try:
            folder.create(OmegaConf.to_yaml(OmegaConf.create(stored)))
        except OSError as error:
            raise UserError(f"run_dir={folder.path}: cannot be made: {error.strerror}") from error
    try:
        summary = run(experiment, prepared, folder, stored)
    except Interrupted:
        print(f"interrupted; continue with: python -m tpg.train resume={folder.path}", file=sys.stderr)
        raise
    return float(summary.get("eval/reward", summary["reward/last"]))


WANTS_TRACEBACK = "HYDRA_FULL_ERROR" in os.environ
BOOKKEEPING = ("run_dir", "resume", "run_id", "choices")
"""Keys of a run's config that say which run it is rather than what it does."""


def own_config(config: DictConfig) -> dict[str, Any]:
    """The resolved config, with the options that were chosen and the run's id."""
    from tpg.composition import resolved, with_shadow_options

    plain = with_shadow_options(resolved(config))
    chosen = HydraConfig.get().runtime.choices
    choices = {str(k): v for k, v in chosen.items() if not str(k).startswith("hydra/")}
    return {**plain, "choices": choices, "run_id": os.urandom(4).hex()}


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


def new_folder(config: DictConfig, method: str) -> Path:
    """Where the run will live; in a multirun a folder for each job."""
    hydra_config = HydraConfig.get()
    if hydra_config.mode == RunMode.MULTIRUN:
        parent = Path(config.run_dir or hydra_config.sweep.dir)
        return (parent / f"{hydra_config.job.num}-{method}-seed{config.seed}").absolute()
    if config.run_dir is not None:
        return Path(config.run_dir).absolute()
    parent = Path("outputs") / method
    name = datetime.now().strftime("%Y-%m-%d_%H-%M-%S")
    taken = sum(1 for _ in parent.glob(f"{name}*"))
    return (parent / (f"{name}-{taken}" if taken else name)).absolute()


FAILED: list[int] = []
"""Exit codes of the jobs of this process that failed and have told why."""


def reported(action: Callable[[DictConfig], float], config: DictConfig) -> float:
    """Run a job; a user's mistake ends in one line and exit code 2, an interruption in 130 or 143.

    In a multirun a failure ends its own job only, whose value is NaN.
    """
    try:
        return action(config)
    except Interrupted as interruption:
        sys.exit(128 + int(interruption.args[0]))
    except Exception as error:
        if WANTS_TRACEBACK:
            raise
        FAILED.append(_told(error))
    if HydraConfig.get().mode == RunMode.MULTIRUN:
        return math.nan
    sys.exit(FAILED.pop())


def run_entry(entry: Callable[[], Any]) -> None:
    """Run a Hydra entry; what Hydra refuses to compose is told in one line too."""
    os.environ["HYDRA_FULL_ERROR"] = "1"
    FAILED.clear()
    try:
        entry()
    except Exception as error:
        if WANTS_TRACEBACK:
            raise
        sys.exit(_told(error, composing=True))
    if FAILED:
        sys.exit(max(FAILED))


def _told(error: Exception, composing: bool = False) -> int:
    """Tell a user's mistake in one line, anything else with its traceback; the exit code."""
    if isinstance(error, UserError):
        message = " ".join(str(error).split())
    elif composing or isinstance(error, HydraException | OmegaConfBaseException):
        from tpg.composition import composition_error

        message = composition_error(error, [word for word in sys.argv[1:] if not word.startswith("-")], CONF)
    else:
        traceback.print_exception(error)
        return 1
    print(f"error: {message}", file=sys.stderr)
    return 2


def main() -> None:
    """The console script tpg-train."""
    run_entry(job)


if __name__ == "__main__":
    main()
