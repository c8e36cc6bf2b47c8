"""Estimate a run's memory and speed: `python -m tpg.plan algorithm=grpo task=addition`. See `--help`."""

import sys
from dataclasses import replace

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from tpg.errors import UserError
from tpg.jobs.configs import BOOKKEEPING, CONF, experiment_of
from tpg.jobs.continuing import continued_run
from tpg.jobs.entry import reported, run_entry


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="plan")
def job(config: DictConfig) -> float:
    """Estimate and print; exit code 1 where the run does not fit. Returns the part of the memory that it takes."""
    return reported(plan, config)


def plan(config: DictConfig) -> float:
    """What `job` does, mistakes raised."""
    from rich.console import Console

    from tpg.composition import built, find_user_modules, option_names, to_experiment
    from tpg.planning.options import Planning
    from tpg.planning.report import planned, show, verdict
    from tpg.training.preparation import quiet_libraries

    find_user_modules()
    keys = [str(key) for key in config if key not in (*BOOKKEEPING, "plan")]
    options = built(OmegaConf.masked_copy(config, ["plan"]), Planning).plan
    if config.resume is None:
        experiment = to_experiment(OmegaConf.masked_copy(config, keys))
    else:
        given = [word for word in HydraConfig.get().overrides.task if not word.lstrip("+~").startswith("plan.")]
        experiment = experiment_of(continued_run(config, given)[1])
    experiment.check_method()
    experiment.policy.check()
    experiment.critic.check(experiment.policy)
    replace(experiment.trainer, accelerator="cpu").check()  # how devices are divided, not whether they are here
    quiet_libraries()
    console = Console(width=None if Console().is_terminal else 120)
    found = planned(experiment, options)
    show(found, option_names("trainer"), console)
    line = verdict(found.memory)
    if not found.memory.fits:
        if HydraConfig.get().mode == RunMode.MULTIRUN:
            raise UserError(line)  # ends this job only
        print(line, file=sys.stderr)
        sys.exit(1)
    print(line)
    return found.memory.peak / found.memory.device_memory


def main() -> None:
    """The console script tpg-plan."""
    run_entry(job)


if __name__ == "__main__":
    main()
