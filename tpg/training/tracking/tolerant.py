"""A logger that fails does not end the run."""

import sys
from collections.abc import Callable
from functools import partial
from typing import Any

from lightning.pytorch.loggers import Logger

from tpg.errors import with_kind


class Tolerant(Logger):
    """Another logger, `logger.<key>`; the first of its errors is said, and every later row is tried again."""

    def __init__(self, key: str, logger: Any) -> None:
        super().__init__()
        self._key = key
        self._logger = logger
        self._told = False

    def tried(self, call: Callable[[], Any]) -> Any:
        """What the call gives; None where it raises."""
        try:
            return call()
        except Exception as error:
            if not self._told:
                self._told = True
                cause = with_kind(error)
                print(
                    f"warning: logger.{self._key}: {cause}; the run goes on without what it could not log there;"
                    " metrics.csv has every row",
                    file=sys.stderr,
                )
            return None

    @property
    def name(self) -> Any:
        """The other's."""
        return self.tried(lambda: self._logger.name)

    @property
    def version(self) -> Any:
        """The other's."""
        return self.tried(lambda: self._logger.version)

    @property
    def save_dir(self) -> Any:
        """The other's."""
        return self.tried(lambda: self._logger.save_dir)

    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        """Log a row."""
        self.tried(lambda: self._logger.log_metrics(metrics, step=step))

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Log options."""
        self.tried(lambda: self._logger.log_hyperparams(params, *args, **kwargs))

    def save(self) -> None:
        """Flush."""
        self.tried(lambda: self._logger.save())

    def finalize(self, status: str) -> None:
        """Close."""
        self.tried(lambda: self._logger.finalize(status))

    def __getattr__(self, name: str) -> Any:
        """What else the other can do."""
        if name.startswith("_"):
            raise AttributeError(name)
        found = getattr(self._logger, name)
        return (lambda *args, **kwargs: self.tried(partial(found, *args, **kwargs))) if callable(found) else found
