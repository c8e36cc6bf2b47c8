"""Supervised training before RL: `python -m tpg.sft task=sort demonstrations=task`. See `--help`."""

import hydra
from omegaconf import DictConfig

from tpg.jobs.configs import CONF
from tpg.jobs.entry import reported, run_entry
from tpg.jobs.stages import perform


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="sft")
def job(config: DictConfig) -> float:
    """Check, load, train. Returns the held-out loss, nats a response token."""
    return reported(imitate, config)


def imitate(config: DictConfig) -> float:
    """What `job` does, mistakes raised."""
    from tpg.stages.kinds import Supervised

    return perform(config, Supervised())


def main() -> None:
    """The console script tpg-sft."""
    run_entry(job)


if __name__ == "__main__":
    main()
