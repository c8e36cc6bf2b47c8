"""Search over experiments: `python -m tpg.sweep sweep=lr_kl_group experiment=sort`. See `--help`."""

import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.plugins import Plugins
from hydra.errors import HydraException
from hydra.types import HydraContext, RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from tpg.errors import Interrupted, UserError
from tpg.jobs import entry
from tpg.jobs.configs import CONF, experiment_of, own_config
from tpg.jobs.entry import mistake, refuse_ranks, reported, run_entry
from tpg.jobs.searches import fixed_overrides, key_of, register_definitions

if TYPE_CHECKING:
    from optuna.study import Study

    from tpg.searching.definition import Sweep
    from tpg.searching.trial import TrialRun
    from tpg.training.experiment import Experiment

ARGUMENTS: list[str] = []
"""What this process was given, before the names of files were read."""


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="sweep")
def job(config: DictConfig) -> float:
    """Search; returns the best value, or with several objectives the number of trials that no other beats."""
    return reported(sweep, config)


def sweep(config: DictConfig) -> float:
    """What `job` does, mistakes raised."""
    from tpg.composition import find_user_modules

    find_user_modules()
    refuse_ranks()
    if config.resume is not None:
        raise UserError("resume: the same command continues a sweep; leave resume= out")
    given = list(HydraConfig.get().overrides.task)
    name = str(HydraConfig.get().runtime.choices["sweep"])
    launcher = str(HydraConfig.get().runtime.choices["hydra/launcher"])
    definition = _definition(config)
    definition.check([key_of(override) for override in given])
    folder = Path(config.run_dir or Path("outputs") / "sweep" / name).absolute()
    try:
        import optuna  # noqa: F401
    except ImportError:
        raise UserError("sweep: needs the package optuna; pip install 'tpg[search]'") from None
    from rich.console import Console

    from tpg.searching.definition import check_corners
    from tpg.searching.outcome import best, conclude
    from tpg.searching.processes import is_worker, share
    from tpg.searching.study import check_unchanged, opened, recover

    console = Console(soft_wrap=True)
    place = _study(definition, name), folder, _iterations(definition, config)
    if is_worker():
        return _search(opened(definition, *place), definition, given, folder)
    corners = check_corners(definition, lambda overrides: _experiment([*given, *overrides]), f"sweep={name}")
    fixed = fixed_overrides(name, given)
    _make(folder)
    study = opened(definition, *place)
    check_unchanged(study, _settings(config, definition, fixed))
    _refuse_others(study, folder)
    again = recover(study, definition.retries)
    ended = sum(trial.state.is_finished() for trial in study.get_trials(deepcopy=False))
    console.print(
        f"[bold]{name}[/bold]: {', '.join(definition.parameters)}; at most {definition.limit} trials in"
        f" {_shown(folder)} ({corners} corners checked)"
        + (f"; {ended} are there, {again} of them to be repeated" if ended else ""),
        highlight=False,
    )
    stopped = None
    try:
        if definition.jobs > 1 and launcher == "basic":
            share(definition.jobs, ARGUMENTS, entry.WANTS_TRACEBACK)
        else:
            _search(study, definition, given, folder)
    except Interrupted as interruption:
        stopped = interruption
    conclude(study, definition, folder, fixed, name, console)
    if stopped is not None:
        print("interrupted; the same command continues the sweep", file=sys.stderr)
        raise stopped
    winners = best(study, definition)
    if not winners:
        raise UserError(f"sweep: no trial finished; see {_shown(folder / 'trials.csv')} and {_shown(folder / 'logs')}")
    return float(winners[0].values[0]) if len(definition.wanted) == 1 else float(len(winners))


def _search(study: "Study", definition: "Sweep", given: list[str], folder: Path) -> float:
    """Run trials, a batch at a time, until there are enough. Raises `Interrupted` when told to stop."""
    from hydra._internal.callbacks import Callbacks

    from tpg.searching.study import next_trial
    from tpg.sweep import run_trial  # by its importable name: other processes may run it

    place = [_assigned("run_dir", folder), _assigned("hydra.sweep.dir", folder)]
    loader = GlobalHydra.instance().config_loader()
    launcher = Plugins.instance().instantiate_launcher(
        hydra_context=HydraContext(config_loader=loader, callbacks=Callbacks()),
        task_function=run_trial,
        config=loader.load_configuration("sweep", [*given, *place], RunMode.MULTIRUN),
    )
    alone = HydraConfig.get().runtime.choices["hydra/launcher"] == "basic"
    deadline = time.monotonic() + (definition.timeout or float("inf"))
    while time.monotonic() < deadline:
        asked = (next_trial(study, definition) for _ in range(1 if alone else definition.jobs))
        batch = [trial for trial in asked if trial is not None]
        if not batch:
            break
        returned = launcher.launch(
            [[*given, *definition.overrides(t.params), *place, f"sweep.trial={t.number}"] for t in batch],
            initial_job_idx=batch[0].number,
        )
        for result in returned:
            if result.return_value is not None:
                raise Interrupted(int(result.return_value))
    return 0.0


def run_trial(config: DictConfig) -> int | None:
    """A launcher's job: one trial of the study; a signal's number if it was asked to stop."""
    from rich.console import Console

    from tpg.composition import find_user_modules
    from tpg.searching.outcome import line
    from tpg.searching.study import opened
    from tpg.searching.trial import attempt

    find_user_modules()
    definition = _definition(config)
    assert definition.trial is not None
    name, folder = str(HydraConfig.get().runtime.choices["sweep"]), Path(config.run_dir)
    study = opened(definition, _study(definition, name), folder, _iterations(definition, config))
    hydra_config = HydraConfig.get()
    stopped = attempt(
        study, definition, definition.trial, folder, lambda path: _planned(config, hydra_config, path, name), mistake
    )
    line(study, definition, definition.trial, Console(soft_wrap=True))
    return stopped


def _planned(config: DictConfig, hydra_config: Any, path: Path, name: str) -> "TrialRun":
    """The run of a trial: as tpg.train would compose it, or as its folder tells if it was begun before."""
    from tpg.searching.trial import TrialRun

    if (path / "config.yaml").is_file():
        stored: Any = OmegaConf.to_container(OmegaConf.load(path / "config.yaml"))
    else:
        stored = _stored(config, hydra_config)
        for logger in stored["logger"].values():
            if isinstance(logger, dict) and "group" in logger:
                logger["group"] = logger["group"] or name
    return TrialRun(experiment_of(stored), stored, OmegaConf.to_yaml(OmegaConf.create(stored)))


def _stored(config: DictConfig, hydra_config: Any) -> dict[str, Any]:
    """The config of tpg.train within the sweep's."""
    train = OmegaConf.masked_copy(config, [str(key) for key in config if key not in ("sweep", "hydra")])
    stored = own_config(train, hydra_config)
    choices = {group: option for group, option in stored["choices"].items() if group.split("/")[0] != "sweep"}
    return {**stored, "choices": choices, "run_dir": None}


def _experiment(overrides: list[str]) -> "Experiment":
    """What a trial with these arguments runs. Raises `UserError` if it does not compose."""
    from tpg.composition import composition_error

    try:
        composed = GlobalHydra.instance().config_loader().load_configuration("sweep", overrides, RunMode.RUN)
        stored = _stored(composed, composed.hydra)
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(composition_error(error, overrides, CONF)) from None
    return experiment_of(stored)


def _definition(config: DictConfig) -> "Sweep":
    """The checked definition. Raises `UserError` that names the key of its file."""
    from tpg.composition import built, resolved
    from tpg.searching.definition import Definition, with_targets

    plain = resolved(OmegaConf.create({"sweep": config.sweep}))["sweep"]
    if "sweep" in plain:
        raise UserError("sweep.sweep: no such key; begin the definition's file with the line '# @package _global_'")
    return built(OmegaConf.create(with_targets(plain)), Definition).sweep


def _iterations(definition: "Sweep", config: DictConfig) -> int:
    """Of the longest trial."""
    varied = definition.parameters.get("iterations")
    return max([int(str(value)) for value in varied.corners()] if varied else [int(config.iterations)])


def _study(definition: "Sweep", name: str) -> str:
    return definition.study or name


def _settings(config: DictConfig, definition: "Sweep", fixed: Sequence[str]) -> dict[str, Any]:
    """What must stay while a study goes on; more trials, another sampler or pruner do not make it another study."""
    parameters = OmegaConf.to_container(config.sweep.parameters, resolve=True)
    grid = {"sampler": "grid"} if definition.sampler.limit(definition.parameters) < float("inf") else {}
    return {"parameters": parameters, "objectives": definition.wanted, "overrides": sorted(fixed), **grid}


def _assigned(key: str, value: Path) -> str:
    from tpg.searching.parameters import override

    return override(key, str(value))


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"run_dir={folder}: cannot be made: {error.strerror}") from error


def _refuse_others(study: "Study", folder: Path) -> None:
    if not study.get_trials(deepcopy=False) and any(folder.glob("trial-*")):
        raise UserError(f"run_dir={folder}: holds trials of another study; give another folder")


def _shown(path: Path) -> Path:
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def run_search(entry: Callable[[], Any]) -> None:
    """Run the entry with its definitions known."""
    try:
        if {"-m", "--multirun"} & set(sys.argv[1:]):
            raise UserError("-m: a sweep runs many jobs already; use sweep.jobs=4 for several at a time")
        ARGUMENTS[:] = sys.argv[1:]
        sys.argv[1:] = register_definitions(ARGUMENTS)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    run_entry(entry)


def main() -> None:
    """The console script tpg-sweep."""
    run_search(job)


if __name__ == "__main__":
    main()
