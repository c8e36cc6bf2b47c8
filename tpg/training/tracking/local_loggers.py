"""Loggers that keep their own store of many runs on this machine."""

import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field

from tpg.component import component
from tpg.training.tracking.loggers import LoggerOptions, Outcome, Start, final, left_by

RUN_ID = "tpg.run_id"
"""The tag by which a continued run is found again."""


@component
class MLflow(LoggerOptions):
    """MLflow, in a sqlite file or on a server; needs the packages mlflow-skinny, sqlalchemy and alembic, or mlflow."""

    packages: ClassVar[dict[str, str]] = {"mlflow": "mlflow-skinny", "sqlalchemy": "sqlalchemy", "alembic": "alembic"}

    experiment: str = "tpg"
    tracking_uri: str | None = None
    """Null: MLFLOW_TRACKING_URI, or else outputs/mlflow.db."""
    group: str | None = None
    tags: list[str] = Field(default_factory=list)
    log_policy: bool = False
    """Whether the final policy becomes an artifact."""

    def build(self, start: Start) -> Any:
        """Lightning's logger; a continued run goes on in the MLflow run that it had."""
        from lightning.pytorch.loggers import MLFlowLogger
        from mlflow.tracking import MlflowClient

        logging.getLogger("mlflow").setLevel(logging.WARNING)  # it tells of every table that it makes
        uri, artifacts = self._store()
        client = MlflowClient(uri)
        known = client.get_experiment_by_name(self.experiment)
        runs = client.search_runs([known.experiment_id], f"tags.`{RUN_ID}` = '{start.run_id}'") if known else []
        given = {"group": self.group, "tags": ",".join(self.tags)}
        logger = MLFlowLogger(
            experiment_name=self.experiment,
            run_name=start.name,
            tracking_uri=uri,
            tags={RUN_ID: start.run_id, **{name: value for name, value in given.items() if value}},
            artifact_location=None if known else artifacts,
            run_id=runs[0].info.run_id if runs else None,
        )
        if runs:
            client.update_run(runs[0].info.run_id, status="RUNNING")
        else:
            logger.log_hyperparams(dict(start.config))
        for file in start.files:
            client.log_artifact(logger.run_id, str(file))
        return logger

    def finish(self, logger: Any, folder: Path, summary: Mapping[str, Any]) -> None:
        """The summary's numbers, and the files that the run leaves."""
        logger.log_metrics(final(summary), int(summary["iterations"]))
        for file in left_by(folder):
            logger.experiment.log_artifact(logger.run_id, str(file))
        if self.log_policy:
            logger.experiment.log_artifacts(logger.run_id, str(folder / "policy"), "policy")

    def close(self, logger: Any, outcome: Outcome) -> None:
        """In MLflow's words a run that was stopped is killed."""
        status = {"finished": "FINISHED", "failed": "FAILED"}.get(outcome, "KILLED")
        logger.experiment.set_terminated(logger.run_id, status)

    def _store(self) -> tuple[str, str | None]:
        """Where runs are, and where the files of a new experiment go; None leaves that to the server."""
        uri = self.tracking_uri or os.environ.get("MLFLOW_TRACKING_URI") or "sqlite:///outputs/mlflow.db"
        if not uri.startswith("sqlite:///"):
            return uri, None
        folder = Path(uri.removeprefix("sqlite:///")).absolute().parent
        folder.mkdir(parents=True, exist_ok=True)
        return uri, (folder / "mlflow-artifacts").as_uri()


@component
class Trackio(LoggerOptions):
    """Trackio: a dashboard on this machine without an account; needs the package trackio."""

    packages: ClassVar[dict[str, str]] = {"trackio": "trackio"}

    project: str = "tpg"
    group: str | None = None
    tags: list[str] = Field(default_factory=list)

    def build(self, start: Start) -> Any:
        """A logger of our own, for Lightning has none."""
        from tpg.training.tracking.iteration_loggers import TrackioIterations

        return TrackioIterations(
            project=self.project,
            name=f"{start.name}-{start.run_id}",
            group=self.group,
            config={**start.config, "tags": self.tags},
        )

    def finish(self, logger: Any, folder: Path, summary: Mapping[str, Any]) -> None:
        """The summary's numbers."""
        logger.log_metrics(final(summary), int(summary["iterations"]))

    def close(self, logger: Any, outcome: Outcome) -> None:
        """Wait until all is written."""
        logger.finish()
