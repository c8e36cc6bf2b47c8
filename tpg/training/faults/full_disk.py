"""A disk that is full ends a run in one line."""

import contextlib
import errno
from collections.abc import Iterator
from pathlib import Path

from tpg.errors import UserError, one_line

NUMBERS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
"""No space left, quota exceeded, larger than a file may be."""
SAYINGS = ("No space left on device", "Disk quota exceeded", "File too large", "file write failed", "unexpected pos")
"""How libraries say it that write by themselves: safetensors and torch."""


def is_full(error: BaseException) -> bool:
    """Whether a file could not be written for want of space, be it what led to another error."""
    if isinstance(error, OSError) and error.errno in NUMBERS:
        return True
    if isinstance(error, Exception) and any(saying in str(error) for saying in SAYINGS):
        return True
    before = error.__cause__ or error.__context__
    return before is not None and is_full(before)


@contextlib.contextmanager
def told_if_full(folder: Path) -> Iterator[None]:
    """Raise `UserError` with the remedy where a file of the run could not be written for want of space."""
    try:
        yield
    except Exception as error:
        if isinstance(error, UserError) or not is_full(error):
            raise
        raise UserError(
            f"no space left to write the run in {folder} ({one_line(error)}): free some, or raise the"
            f" quota, and continue with python -m tpg.train resume={folder}"
        ) from error
