"""Where a run is followed from, beside its folder."""

import os
from abc import ABC, abstractmethod
from netrc import NetrcParseError, netrc
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlparse

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

        mode: Any = self.mode
        if mode == "auto":
            mode = os.environ.get("WANDB_MODE", "online" if _logged_in() else "offline")
        folder.joinpath("wandb").mkdir(exist_ok=True)
        run = wandb.init(
            dir=folder,
            name=folder.name,
            id=run_id,
            project=self.project,
            entity=self.entity,
            group=self.group,
            tags=self.tags,
            config=config,
            mode=mode,
            resume="allow" if mode == "online" else None,
            settings=wandb.Settings(silent=True),
        )
        run.define_metric("iteration")
        run.define_metric("*", step_metric="iteration")
        return WandbLogger(experiment=run)


def _logged_in() -> bool:
    """Whether wandb would find a key: in the environment or in the file that `wandb login` writes."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    host = urlparse(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname or ""
    try:
        return netrc(os.environ.get("NETRC")).authenticators(host) is not None
    except (OSError, NetrcParseError):
        return False
