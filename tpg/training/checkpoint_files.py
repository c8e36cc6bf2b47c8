"""Checkpoint files: each complete or absent, and one that is damaged is recognised."""

from __future__ import annotations

import hashlib
import os
import pickle
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

import torch
from lightning.fabric.plugins import TorchCheckpointIO

from tpg.errors import UserError
from tpg.training.run_folder import RunFolder, put_in_place

LABEL = b"sha256:"
FOOTER = len(LABEL) + 64 + 1
"""Bytes at the end of a checkpoint: label, digest of all before in hexadecimal, line end. Torch reads over them."""
BLOCK = 1 << 20


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes under a temporary name, with a checksum, and renames: a killed run leaves no half checkpoint."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        """Write, flush to the disk, rename."""
        staging = Path(f"{path}.tmp")
        with staging.open("wb") as file:
            digested = _Digested(file)
            torch.save(checkpoint, cast(BinaryIO, digested))  # it writes and flushes, no more
            file.write(digested.footer)
        put_in_place(staging, Path(path))


class _Digested:
    """A file whose digest is taken as it is written, so that it need not be read again."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._digest = hashlib.sha256()

    def write(self, data: bytes) -> int:
        self._digest.update(data)
        return self._file.write(data)

    def flush(self) -> None:
        self._file.flush()

    @property
    def footer(self) -> bytes:
        return _footer(self._digest.hexdigest())


def _footer(digest: str) -> bytes:
    return LABEL + digest.encode() + b"\n"


def damage(path: Path) -> str | None:
    """Why a checkpoint is not what was written, in a few words; None: it is. Raises `UserError` if it is unreadable."""
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            left = max(os.fstat(file.fileno()).st_size - FOOTER, 0)
            while left and (block := file.read(min(left, BLOCK))):
                digest.update(block)
                left -= len(block)
            footer = file.read()
    except OSError as error:
        raise UserError(f"checkpoint {path}: {error.strerror}; delete it to continue without it") from error
    if len(footer) != FOOTER or not footer.startswith(LABEL):
        return None if _is_whole(path) else "its end is missing"
    return None if footer == _footer(digest.hexdigest()) else "its checksum is another"


def _is_whole(path: Path) -> bool:
    """Whether a file that carries no checksum of ours is what torch wrote, all of it."""
    try:
        with zipfile.ZipFile(path) as archive:
            if archive.testzip() is not None:
                return False
        torch.load(path, map_location="cpu", weights_only=True)
    except (zipfile.BadZipFile, pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError):
        return False
    return True


@dataclass(frozen=True)
class FoundCheckpoints:
    """The checkpoints that a run's folder holds, once they were read through."""

    complete: tuple[Path, ...]
    """The oldest first."""
    damaged: Mapping[str, str]
    """Why each of the others cannot be used, by its name."""

    @classmethod
    def of(cls, folder: RunFolder) -> FoundCheckpoints:
        """Read all that is there, and remove what a killed run was writing.

        Raises `UserError`, and removes nothing, if there are checkpoints and none is complete: the run would begin anew
        over what it has left.
        """
        reasons = {path: damage(path) for path in sorted(folder.checkpoints.glob("iteration-*.ckpt"))}
        complete = tuple(path for path, reason in reasons.items() if reason is None)
        damaged = {path.name: reason for path, reason in reasons.items() if reason is not None}
        if damaged and not complete:
            what = ", ".join(f"{name} is damaged ({why})" for name, why in damaged.items())
            raise UserError(
                f"no complete checkpoint is left in {folder.path}: {what}; nothing was deleted; delete"
                f" {folder.checkpoints} to begin anew with iteration 1"
            )
        folder.clear_staging()
        folder.checkpoints.mkdir(exist_ok=True)
        return cls(complete, damaged)

    @property
    def newest(self) -> Path | None:
        """The one to continue from."""
        return self.complete[-1] if self.complete else None

    @property
    def warnings(self) -> list[str]:
        """A line for each that is left out."""
        goes_on = f"continuing after iteration {RunFolder.iteration_of(self.newest)}"
        return [f"checkpoint {name} is damaged ({why}): left out; {goes_on}" for name, why in self.damaged.items()]
