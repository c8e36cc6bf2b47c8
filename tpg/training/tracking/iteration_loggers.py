"""Lightning loggers that Lightning does not have in this form."""

import contextlib
import io
from collections.abc import Mapping
from typing import Any

from lightning.pytorch.loggers import Logger, WandbLogger


class WandbIterations(WandbLogger):
    """Lightning's, without a step of its own: the row's `iteration` is the x axis, offline and continued too."""

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Log a row."""
        self.experiment.log(dict(metrics) if step is None else {"iteration": step, **metrics})

    def alert(self, title: str, text: str) -> None:
        """Tell those who asked W&B to be told of alerts."""
        self.experiment.alert(title=title, text=text, level="WARN")


class TrackioIterations(Logger):
    """A trackio run; one of the same name is continued."""

    def __init__(self, project: str, name: str, group: str | None, config: Mapping[str, Any]) -> None:
        import trackio

        with contextlib.redirect_stdout(io.StringIO()):  # it tells where its files are, each time
            self.experiment = trackio.init(
                project=project,
                name=name,
                group=group,
                config=dict(config),
                resume="allow",
                embed=False,
                auto_log_gpu=False,
                auto_log_cpu=False,
            )

    @property
    def name(self) -> str:
        """The project."""
        return str(self.experiment.project)

    @property
    def version(self) -> str:
        """The run."""
        return str(self.experiment.name)

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Log a row at its iteration."""
        self.experiment.log(dict(metrics), step=step)

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """The config was given at the start."""

    def log_table(self, key: str, columns: list[str], data: list[list[Any]], step: int | None = None) -> None:
        """Log a table."""
        import trackio

        self.experiment.log({key: trackio.Table(columns=columns, data=data)}, step=step)

    def alert(self, title: str, text: str) -> None:
        """Show it among the run's alerts."""
        import trackio

        with contextlib.redirect_stdout(io.StringIO()):  # the screen has it
            trackio.alert(title, text)

    def finish(self) -> None:
        """Wait until all is written."""
        import trackio

        with contextlib.redirect_stdout(io.StringIO()):
            trackio.finish()
