"""Where a run is followed from, beside its folder."""

import importlib.util
import os
import sys
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from netrc import NetrcParseError, netrc
from pathlib import Path
from typing import Any, ClassVar, Literal
from urllib.parse import urlparse

from pydantic import Field

from tpg.component import component
from tpg.errors import UserError, one_line

Outcome = Literal["finished", "pruned", "interrupted", "failed"]
"""How a run ended: complete, not worth going on with, asked to stop, or by an error."""

PATIENCE_S = 60.0
"""How long a server may take to answer at the start."""


@dataclass(frozen=True)
class Start:
    """What a logger is told when a run begins or is continued."""

    folder: Path
    run_id: str
    config: Mapping[str, Any]
    """The run's own, with `environment` beside it: code, versions and device."""
    iteration: int
    """The last one that is done; 0 for a new run."""
    files: tuple[Path, ...] = ()
    """Of the folder, that tell where the run comes from."""

    @property
    def name(self) -> str:
        """Of the run, for people."""
        return self.folder.name


@component
class LoggerOptions(ABC):
    """A logger that Lightning knows."""

    packages: ClassVar[dict[str, str]] = {}
    """What it needs beside tpg: the name to install, by the name to import."""

    def check(self, key: str) -> None:
        """Raise `UserError` that begins with `key` if the run could not be logged here."""
        missing = [package for module, package in self.packages.items() if importlib.util.find_spec(module) is None]
        if missing:
            raise UserError(f"{key}: needs {' and '.join(missing)}; pip install {' '.join(missing)}")

    @abstractmethod
    def build(self, start: Start) -> Any:
        """The logger, or None if the run's folder is all that is wanted."""

    def finish(self, logger: Any, folder: Path, summary: Mapping[str, Any]) -> None:  # noqa: B027
        """Log what a complete run leaves in its folder, and its summary."""

    def close(self, logger: Any, outcome: Outcome) -> None:
        """Nothing is logged after this."""
        logger.finalize("failed" if outcome == "failed" else "success")


@component
class Csv(LoggerOptions):
    """Nothing beside the run's folder, where metrics.csv is always written."""

    def build(self, start: Start) -> None:
        """No logger."""


@component
class TensorBoard(LoggerOptions):
    """TensorBoard event files in the run's folder; needs the package tensorboard."""

    packages: ClassVar[dict[str, str]] = {"tensorboard": "tensorboard"}

    def build(self, start: Start) -> Any:
        """Lightning's logger; what a continued run does again replaces what was logged of it."""
        from lightning.pytorch.loggers import TensorBoardLogger

        purge: dict[str, Any] = {"purge_step": start.iteration + 1} if start.iteration else {}
        logger = TensorBoardLogger(start.folder, name="tensorboard", version="", default_hp_metric=False, **purge)
        for file in start.files:
            logger.experiment.add_text(file.name, f"```\n{file.read_text(errors='replace')}\n```", start.iteration)
        logger.log_hyperparams(dict(start.config))
        return logger

    def finish(self, logger: Any, folder: Path, summary: Mapping[str, Any]) -> None:
        """The summary as scalars."""
        logger.log_metrics(final(summary), int(summary["iterations"]))


@component
class WandB(LoggerOptions):
    """Weights & Biases. `auto` goes online when the user is logged in or sets WANDB_MODE, and stays offline else."""

    project: str = "tpg"
    entity: str | None = None
    group: str | None = None
    tags: list[str] = Field(default_factory=list)
    mode: Literal["auto", "online", "offline", "disabled"] = "auto"
    log_code: bool = True
    """Whether the uncommitted changes go with the run; the commit always does."""
    log_policy: bool = False
    """Whether the final policy becomes an artifact."""

    def check(self, key: str) -> None:
        """Besides, refuse to go online without a key."""
        super().check(key)
        if self._mode() == "online" and not _logged_in():
            raise UserError(f"{key}.mode=online: not logged in; run `wandb login`, or use {key}.mode=offline")

    def build(self, start: Start) -> Any:
        """Lightning's logger, with the iteration as the x axis."""
        import wandb

        from tpg.training.tracking.iteration_loggers import WandbIterations

        mode = self._mode()
        start.folder.joinpath("wandb").mkdir(exist_ok=True)
        try:
            run = self._begun(start, mode)
        except wandb.errors.CommError as error:
            print(
                f"warning: logger.wandb: no answer from the server ({one_line(error)}): logging offline;"
                f" upload with `wandb sync {start.folder}/wandb/offline-run-*`",
                file=sys.stderr,
            )
            wandb.teardown()  # of what still waits for the server
            run = self._begun(start, "offline")
        except wandb.errors.Error as error:
            raise UserError(f"logger.wandb: {error}; continue with wandb offline: WANDB_MODE=offline") from error
        run.define_metric("iteration")
        run.define_metric("*", step_metric="iteration")
        code = wandb.Artifact(f"code-{run.id}", type="code", description="Versions, device, uncommitted changes")
        for file in start.files:
            if self.log_code or file.suffix != ".diff":
                code.add_file(str(file), policy="immutable")
        run.log_artifact(code)
        return WandbIterations(experiment=run)

    def _begun(self, start: Start, mode: Any) -> Any:
        import wandb

        return wandb.init(
            dir=start.folder,
            name=start.name,
            id=start.run_id,
            project=self.project,
            entity=self.entity,
            group=self.group,
            tags=self.tags,
            config=dict(start.config),
            mode=mode,
            resume="allow" if mode == "online" else None,
            settings=wandb.Settings(silent=True, init_timeout=PATIENCE_S),
        )

    def finish(self, logger: Any, folder: Path, summary: Mapping[str, Any]) -> None:
        """The summary in the run's own, and as an artifact; the policy as another if it is wanted."""
        import wandb

        run = logger.experiment
        run.summary.update({f"final/{name}": value for name, value in summary.items() if name != "last"})
        leaves = wandb.Artifact(f"run-{run.id}", type="run", description="What the run left, but for its policy")
        for file in left_by(folder):
            leaves.add_file(str(file), policy="immutable")
        run.log_artifact(leaves)
        if self.log_policy:
            policy = wandb.Artifact(f"policy-{run.id}", type="model", metadata=final(summary))
            for file in sorted(each for each in folder.glob("policy/*") if each.is_file()):
                policy.add_file(str(file), policy="immutable")
            run.log_artifact(policy)

    def close(self, logger: Any, outcome: Outcome) -> None:
        """W&B calls a run failed that has more to do."""
        logger.experiment.finish(exit_code=0 if outcome in ("finished", "pruned") else 1)

    def _mode(self) -> str:
        if self.mode != "auto":
            return self.mode
        return os.environ.get("WANDB_MODE") or ("online" if _logged_in() else "offline")


def final(summary: Mapping[str, Any]) -> dict[str, float]:
    """A summary's numbers under names that do not meet those of an iteration."""
    return {f"final/{name}": value for name, value in summary.items() if isinstance(value, int | float)}


def left_by(folder: Path) -> list[Path]:
    """What a complete run leaves that is small."""
    tables = ("metrics.csv", "completions.jsonl", "guards.jsonl")
    names = ("config.yaml", *tables, "summary.json", "learning_curve.png", "audit.json")
    return [folder / name for name in names if (folder / name).exists()]


def _logged_in() -> bool:
    """Whether wandb would find a key: in the environment or in the file that `wandb login` writes."""
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    host = urlparse(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname or ""
    try:
        return netrc(os.environ.get("NETRC")).authenticators(host) is not None
    except (OSError, NetrcParseError):
        return False
