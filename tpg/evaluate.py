"""Score a policy: `python -m tpg.evaluate run=<folder>` or `policy.path=... task=...`. See `--help`."""

import json
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from tpg.errors import UserError
from tpg.jobs import CONF, reported, run_entry

GROUPS = ("policy", "task", "reward_model", "rollout", "evaluation", "trainer")


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="evaluate")
def job(config: DictConfig) -> float:
    """Evaluate and print; returns the mean reward."""
    return reported(evaluate, config)


def evaluate(config: DictConfig) -> float:
    """What `job` does, mistakes raised."""
    from tpg.composition import built, find_user_modules
    from tpg.training.judging import EvaluationRun, judge

    find_user_modules()
    if config.run is not None:
        config = _of_run(config, Path(config.run))
    keys = [*GROUPS, "seed", "samples", "reward_workers", "reward_memory_gb"]
    evaluation = built(OmegaConf.masked_copy(config, keys), EvaluationRun)
    evaluation.check()
    return judge(evaluation)


def _of_run(config: DictConfig, folder: Path) -> DictConfig:
    """The run's own policy, task, rewards and sampling, with the groups and keys that were given beside it."""
    if not (folder / "config.yaml").is_file():
        raise UserError(f"run={folder}: holds no run: there is no config.yaml in it")
    stored: Any = OmegaConf.load(folder / "config.yaml")
    merged = OmegaConf.masked_copy(stored, [*GROUPS, "seed", "reward_workers", "reward_memory_gb"])
    OmegaConf.set_struct(merged, False)
    if (folder / "precision.json").is_file() and merged.trainer.precision == "auto":
        merged.trainer.precision = json.loads((folder / "precision.json").read_text())["name"]
    merged.samples = config.samples
    merged.policy = {"_target_": "tpg.policies.huggingface.HuggingFace", "path": str(folder / "policy")}
    for override in HydraConfig.get().overrides.task:
        key = override.lstrip("+").split("=")[0].split("@")[0]
        if key != "run":
            OmegaConf.update(merged, key, OmegaConf.select(config, key), merge=key not in GROUPS)
    if merged.policy.get("path") == str(folder / "policy") and not (folder / "policy").is_dir():
        raise UserError(f"run={folder}: holds no policy yet; finish it with python -m tpg.train resume={folder}")
    return merged


def main() -> None:
    """The console script tpg-evaluate."""
    run_entry(job)


if __name__ == "__main__":
    main()
