"""Where a run is followed from, beside its folder."""

import os
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from tpg.component import component


@component
class LoggerOptions(ABC):
    """A logger that Lightning knows."""

    @abstractmethod
    def build(self, folder: Path, config: dict[str, Any], run_id: str) -> Any:
        """The logger, or None if the run's folder is all that is wanted."""


@component
class Csv(LoggerOptions):
    """Nothing beside the run's folder, where metrics.csv is always written."""

    def build(self, folder: Path, config: dict[str, Any], run_id: str) -> None:
        """No logger."""


@component
class TensorBoard(LoggerOptions):
    """TensorBoard event files in the run's folder; needs the package tensorboard."""

    def build(self, folder: Path, config: dict[str, Any], run_id: str) -> Any:
        """Lightning's logger."""
        from lightning.pytorch.loggers import TensorBoardLogger

        return TensorBoardLogger(folder, name="tensorboard", version="")


@component
class WandB(LoggerOptions):
    """Weights & Biases. `auto` goes online when the user is logged in or sets WANDB_MODE, and stays offline else."""

    project: str = "tpg"
    entity: str | None = None
    group: str | None = None
    tags: list[str] = Field(default_factory=list)
    mode: Literal["auto", "online", "offline", "disabled"] = "auto"

    def build(self, folder: Path, config: dict[str, Any], run_id: str) -> Any:
        """Lightning's logger, with the iteration as the x axis."""
        import wandb
        from lightning.pytorch.loggers import WandbLogger

        mode = self.mode
        if mode == "auto":
            logged_in = bool(wandb.api.api_key) and os.environ.get("WANDB_MODE") != "offline"
            mode = os.environ.get("WANDB_MODE", "online" if logged_in else "offline")  # type: ignore[assignment]
        os.environ.setdefault("WANDB_SILENT", "true")
        logger = WandbLogger(
            save_dir=folder,
            name=folder.name,
            id=run_id,
            project=self.project,
            entity=self.entity,
            group=self.group,
            tags=self.tags,
            config=config,
            mode=mode,
            resume="allow" if mode == "online" else None,
        )
        logger.experiment.define_metric("iteration")
        logger.experiment.define_metric("*", step_metric="iteration")
        return logger
