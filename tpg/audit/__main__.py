"""The bias and variance of what a config trains: `python -m tpg.audit algorithm=grpo`. See `--help`."""

import sys
from typing import TYPE_CHECKING

import hydra
from omegaconf import DictConfig, OmegaConf

from tpg.errors import UserError
from tpg.jobs.configs import BOOKKEEPING, CONF, new_folder, own_config
from tpg.jobs.entry import reported, run_entry

if TYPE_CHECKING:
    from tpg.estimators.base import Estimator
    from tpg.training.experiment import Experiment


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="audit")
def job(config: DictConfig) -> float:
    """Audit and print; returns the first row's relative bias, or its noise where the audit is on the policy."""
    return reported(audit, config)


def audit(config: DictConfig) -> float:
    """What `job` does, mistakes raised."""
    from tpg.audit.run import on_policy, on_worlds
    from tpg.composition import find_user_modules, to_experiment
    from tpg.training.run_folder import RunFolder

    find_user_modules()
    stored = own_config(config)
    experiment = to_experiment(OmegaConf.create({k: v for k, v in stored.items() if k not in BOOKKEEPING}))
    choices = stored["choices"]
    folder = new_folder(config, f"audit-{choices.get('algorithm') or choices['estimator']}")
    RunFolder.refuse_other_run(folder)
    estimators, left_out = _estimators(experiment, choices)
    for line in left_out:
        print(f"note: {line}", file=sys.stderr)
    run = on_policy if experiment.audit.on == "policy" else on_worlds
    return run(experiment, estimators, choices, folder, stored)


def _estimators(experiment: "Experiment", choices: dict[str, str]) -> "tuple[dict[str, Estimator], list[str]]":
    """The estimators to compare by name, and why others are left out."""
    from tpg.composition import named_options, option_names

    wanted, own = experiment.audit.estimators, str(choices["estimator"])
    if wanted is None:
        experiment.check_method()
        return {own: experiment.estimator}, []
    if not wanted:
        raise UserError("audit.estimators: names no estimator; null stands for the config's own")
    if isinstance(wanted, dict):
        for estimator in wanted.values():
            experiment.with_estimator(estimator).check_method()
        return dict(wanted), []
    names = [own, *(name for name in option_names("estimator") if name != own)] if wanted == "all" else wanted
    admitted: dict[str, Estimator] = {}
    left_out: list[str] = []
    for name in names:
        try:
            made = {own: experiment.estimator}
            if name != own:
                made = named_options("estimator", [name], "audit.estimators")
            experiment.with_estimator(made[name]).check_method()
            admitted |= made
        except UserError as error:
            if wanted != "all":
                raise
            left_out.append(f"{name} is left out: {error}")
    return admitted, left_out


def main() -> None:
    """The console script tpg-audit."""
    run_entry(job)


if __name__ == "__main__":
    main()
