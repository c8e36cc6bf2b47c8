"""One run: what it is, and how every process that takes part in it carries it out."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Generic, Protocol, TypeAlias, TypeVar

from tpg.errors import UserError
from tpg.training.experiment import Experiment
from tpg.training.faults.full_disk import told_if_full
from tpg.training.faults.out_of_memory import told_if_out_of_memory
from tpg.training.parallel.ranks import Ranks
from tpg.training.preparation import prepare
from tpg.training.pruning import Pruning
from tpg.training.run import run
from tpg.training.run_folder import RunFolder, write_atomically
from tpg.training.trainer import TrainerOptions

Report: TypeAlias = Callable[[int, float], bool]
"""Hears an iteration's number and what it measured; says whether the run should stop."""


class Trained(Protocol):
    """Options of something that is trained."""

    @property
    def trainer(self) -> TrainerOptions:
        """On which devices."""


E = TypeVar("E", bound=Trained)


@dataclass(frozen=True)
class Spec(Generic[E]):
    """What a run needs to begin or to go on, be it an experiment or a stage before it."""

    experiment: E
    config: Mapping[str, Any]
    text: str
    """The config as the run's folder holds it."""
    path: Path
    begun: bool
    """Whether the folder holds a part of this run."""
    stop_file: Path | None = None
    """Appears, with a signal's number in it, when the run is to stop."""


@dataclass(frozen=True)
class RunSpec(Spec[Experiment]):
    """An experiment's."""

    watched: str | None = None
    """The metric by which others may stop the run early."""


def carry_out(spec: RunSpec, ranks: Ranks | None = None, report: Report | None = None) -> dict[str, Any]:
    """Load, make the folder, train; returns the summary. Every process of `ranks` calls this.

    Raises `UserError` for what cannot be loaded, on every process and before there is a folder, and where the disk is
    full or memory runs out; `Interrupted`; `Pruned` when `report` said so.
    """
    ranks = ranks or Ranks()
    folder = RunFolder(spec.path)
    experiment = spec.experiment
    prepared = ranks.together(lambda: prepare(experiment))
    with told_if_full(folder.path):
        ranks.from_main(lambda: made(folder, spec))
    if spec.watched is not None and report is not None:
        ask = report  # of the main process alone: it is the only one that another may hear
        pruning = Pruning(
            spec.watched,
            folder,
            experiment.iterations,
            lambda iteration, value: ranks.from_main(lambda: ask(iteration, value)),
        )
        experiment = replace(experiment, callbacks={**experiment.callbacks, "pruning": pruning})
    with told_if_full(folder.path), told_if_out_of_memory(folder.path):
        return run(experiment, prepared, folder, spec.config, spec.stop_file, ranks)


def made(folder: RunFolder, spec: Spec[Any]) -> None:
    """Write the config, in a new folder if the run is not begun. Raises `UserError` where that cannot be made."""
    if spec.begun:
        write_atomically(folder.config, spec.text)
        return
    try:
        folder.create(spec.text)
    except OSError as error:
        raise UserError(f"run_dir={folder.path}: cannot be made: {error.strerror}") from error
