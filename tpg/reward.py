"""A reward model from preferences: `python -m tpg.reward preferences=dataset ...`. See `--help`."""

import hydra
from omegaconf import DictConfig

from tpg.jobs.configs import CONF
from tpg.jobs.entry import reported, run_entry
from tpg.jobs.stages import perform


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="reward")
def job(config: DictConfig) -> float:
    """Check, load, train. Returns the held-out accuracy."""
    return reported(judge, config)


def judge(config: DictConfig) -> float:
    """What `job` does, mistakes raised."""
    from tpg.stages.kinds import RewardModel

    return perform(config, RewardModel())


def main() -> None:
    """The console script tpg-reward."""
    run_entry(job)


if __name__ == "__main__":
    main()
