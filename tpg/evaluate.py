"""Score a policy: `python -m tpg.evaluate run=<folder>` or `policy.path=... task=...`. See `--help`."""

import json
import sys
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from tpg.errors import UserError
from tpg.jobs.configs import CONF, with_groups
from tpg.jobs.entry import reported, run_entry

GROUPS = ("policy", "task", "reward_model", "combination", "rollout", "evaluation", "trainer")
OWN = ("against", "against_success_reward", "best_of_n", "report", "samples")
"""Keys that no run has."""


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="evaluate")
def job(config: DictConfig) -> float:
    """Evaluate and print; returns the mean reward of the answers, against the truth if one is named."""
    return reported(evaluate, config)


def evaluate(config: DictConfig) -> float:
    """What `job` does, mistakes raised."""
    from tpg.composition import built, find_user_modules, resolved
    from tpg.training.judging import EvaluationRun, judge

    find_user_modules()
    if config.run is not None:
        config = _of_run(config, Path(config.run))
    keys = [*GROUPS, *OWN, "seed", "reward_workers", "reward_memory_gb"]
    evaluation = built(OmegaConf.create(with_terms(resolved(OmegaConf.masked_copy(config, keys)))), EvaluationRun)
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
    for key in OWN:
        merged[key] = config[key]
    merged.policy = {"_target_": "tpg.policies.huggingface.HuggingFace", "path": str(folder / "policy")}
    for override in HydraConfig.get().overrides.task:
        key = override.lstrip("+~").split("=")[0].split("@")[-1]
        if key != "run":
            OmegaConf.update(merged, key, OmegaConf.select(config, key), merge=key not in GROUPS)
    if merged.policy.get("path") == str(folder / "policy") and not (folder / "policy").is_dir():
        raise UserError(f"run={folder}: holds no policy yet; finish it with python -m tpg.train resume={folder}")
    return merged


def with_terms(plain: dict[str, Any]) -> dict[str, Any]:
    """The config with options of `reward_model` in place of the names in `against`, where it lists names."""
    from tpg.composition import named_nodes

    names = plain.get("against")
    if names is None or isinstance(names, dict):
        return plain
    if not isinstance(names, list):
        raise UserError(f"against={names}: should be a list, e.g. against=[{names}]")
    nodes = named_nodes("reward_model", [str(name) for name in names], "against")
    return {**plain, "against": {name: node for terms in nodes.values() for name, node in terms.items()}}


def main() -> None:
    """The console script tpg-evaluate."""
    sys.argv[1:] = with_groups(sys.argv[1:])
    run_entry(job)


if __name__ == "__main__":
    main()
