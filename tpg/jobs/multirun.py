"""A sweep of many jobs (`-m`): checked before the first begins, stopped as one, and told in a table at its end."""

import math
import os
import platform
import signal
import sys
import traceback
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Any

from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException
from rich.console import Console

from tpg.errors import UserError
from tpg.jobs import entry
from tpg.jobs.configs import experiment_of, job_of_sweep, own_config, refuse_other_config
from tpg.jobs.records import LAUNCHED, Launch, Record
from tpg.reporting.sweep_table import Row, sweep_table


class Multirun(Callback):
    """Begins a sweep; Hydra calls it, in the process that leads the sweep, before its sweeper and launcher are made."""

    def __init__(self, continued: bool = True) -> None:
        self.continued = continued
        """Whether jobs are experiments, which can be checked up front and leave what can be continued."""

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Fix the folder, check the jobs, listen for signals. Leaves by `SystemExit`: Hydra swallows exceptions."""
        try:
            self._begin(config)
        except Exception as error:
            message = f"run_dir={error.filename}: {error.strerror}" if isinstance(error, OSError) else None
            if message is None:
                traceback.print_exception(error)
            print(f"error: {message or 'the sweep cannot begin'}", file=sys.stderr)
            sys.exit(1 if message is None else 2)

    def _begin(self, config: DictConfig) -> None:
        try:
            entry.refuse_ranks()
        except UserError as error:
            print(f"error: -m: {error}", file=sys.stderr)
            sys.exit(2)
        folder = Path(config.get("run_dir") or config.hydra.sweep.dir).absolute()
        with open_dict(config):
            config.hydra.sweep.dir = str(folder)
            # The jobs compose anew, perhaps in another process and at another time.
            quoted = str(folder).replace("\\", "\\\\").replace("'", "\\'")
            config.hydra.overrides.hydra.append(f"hydra.sweep.dir='{quoted}'")
        composed = _composed(config)
        launch = Launch(
            folder=folder,
            command=list(config.hydra.overrides.task),
            wants_traceback=entry.WANTS_TRACEBACK,
            continues=self.continued,
        )
        LAUNCHED[:] = [launch]
        if composed is None:
            launch.begin()
            return  # Hydra will compose it again, and refuse the sweep
        if not composed and _is_grid(config):
            print("error: the sweep has no job: a glob(...) among its values matches no option", file=sys.stderr)
            LAUNCHED.clear()
            sys.exit(2)
        names = {job_of_sweep(job, job.hydra).name for job in composed}
        LAUNCHED[:] = [launch] = [replace(launch, jobs=len(names) or None)]
        refused = _refused(composed) if self.continued else {}
        if refused and len(refused) == len(composed):
            for message in dict.fromkeys(refused.values()):
                print(f"error: {message}", file=sys.stderr)
            LAUNCHED.clear()
            sys.exit(2)
        launch.begin()
        for number, message in refused.items():
            job = job_of_sweep(composed[number], composed[number].hydra)
            record = job.note("refused", error=message, code=2, told=True)
            print(f"error: {record.label}: {message}", file=sys.stderr)
        count = f"{len(composed)} jobs" if composed else "sweep"
        left_out = f"; {len(refused)} refused, the others run" if refused else ""
        print(f"{count} in {_shown(folder)}{left_out}", flush=True)
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, _stop)


def _stop(number: int, frame: FrameType | None) -> None:
    """Let running jobs leave their checkpoints; a second signal ends the sweep at once."""
    if LAUNCHED:
        LAUNCHED[0].request_stop(number)
    for other in (signal.SIGINT, signal.SIGTERM):
        signal.signal(other, signal.SIG_DFL)


def _is_grid(config: DictConfig) -> bool:
    """Whether the jobs are all combinations of the values given, which Hydra's own sweeper makes."""
    return str(config.hydra.sweeper._target_).endswith("BasicSweeper")


def _composed(config: DictConfig) -> list[DictConfig] | None:
    """The config of every job of a plain grid; none of another sweeper's. None if one does not compose."""
    from hydra._internal.core_plugins.basic_sweeper import BasicSweeper

    if not _is_grid(config):
        return []  # its sweeper decides as it goes
    loader = GlobalHydra.instance().config_loader()
    parser = OverridesParser.create(config_loader=loader)
    given = [f"{key}={value}" for key, value in (config.hydra.sweeper.params or {}).items()]
    composed = []
    try:
        overrides = parser.parse_overrides([*given, *config.hydra.overrides.task])
        for number, of_job in enumerate(BasicSweeper.split_arguments(overrides, None)[0]):
            made = loader.load_sweep_config(config, list(of_job))
            with open_dict(made):
                made.hydra.job.num = number
                made.hydra.job.id = number
            composed.append(made)
    except (HydraException, OmegaConfBaseException):
        return None
    return composed


def _refused(composed: list[DictConfig]) -> dict[int, str]:
    """Jobs that cannot run by number, and why."""
    from tpg.composition import find_user_modules
    from tpg.launching.processes import refuse_other_nodes

    find_user_modules()
    refused = {}
    for number, config in enumerate(composed):
        if config.get("resume"):
            continue
        try:
            hydra = config.hydra
            own = OmegaConf.masked_copy(config, [str(key) for key in config if key != "hydra"])
            stored = own_config(own, hydra)
            experiment = experiment_of(stored)
            experiment.check()
            refuse_other_nodes(experiment.trainer)
            refuse_other_config(job_of_sweep(own, hydra), stored)
        except (UserError, HydraException, OmegaConfBaseException) as error:
            refused[number] = str(entry.mistake(error))
    return refused


def concluded(launch: Launch, code: int) -> int:
    """Tell what became of the jobs; the command's exit code."""
    records = launch.records()
    for record in records:
        if record.error is not None and not record.told:
            print(f"error: {record.label}: {record.error}", file=sys.stderr)
    states = [_state(record) for record in records]
    lost = [record for record, state in zip(records, states, strict=True) if state == "died"]
    if records:
        rows = [
            Row(r.number, " ".join(r.overrides), r.seconds, state, Path(r.folder), _finite(r.value))
            for r, state in zip(records, states, strict=True)
        ]
        terminal = Console()
        console = terminal if terminal.is_terminal else Console(width=200)
        console.print(f"\nsweep {_shown(launch.folder)}", highlight=False)
        console.print(sweep_table(launch.folder, rows))
    for record in lost:
        print(f"error: {record.label}: its process {record.pid} ended without a word", file=sys.stderr)
    unheard = max((launch.jobs or 0) - len(records), 0)
    if unheard:
        print(f"error: {unheard} of {launch.jobs} jobs never began", file=sys.stderr)
    left = unheard or any(state not in ("finished", "skipped", "refused") for state in states)
    if left and launch.continues:
        print(f"the same command with run_dir={_shown(launch.folder)} continues the sweep", file=sys.stderr)
    if launch.stop.exists():
        return 128 + int(launch.stop.read_text())
    return max([code, *(record.code for record in records), *(1 for _ in lost), int(unheard > 0)])


def _state(record: Record) -> str:
    """The record's state; a job that its launcher no longer waits for is found out by its process."""
    if record.state != "running" or record.host != platform.node():
        return record.state
    try:
        os.kill(record.pid, 0)
    except ProcessLookupError:
        return "died"
    except PermissionError:
        pass
    return "running"


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _shown(path: Path) -> Path:
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
