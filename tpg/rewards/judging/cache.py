"""What a judge has answered, on disk."""

import hashlib
import json
import sqlite3
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tpg.errors import UserError, one_line

PATIENCE_S = 5.0
"""How long another process may hold the file."""


def identity(body: Mapping[str, Any]) -> str:
    """A hash of a request: model, messages, sampling parameters and the form of the answer."""
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


class AnswerCache:
    """Answers by the identity of their requests, in a SQLite file that the processes of a machine may share.

    Raises `UserError`, which begins with `key`, when the file is not to be had.
    """

    def __init__(self, path: str, key: str) -> None:
        try:
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            self._file = sqlite3.connect(path, timeout=PATIENCE_S, isolation_level=None, check_same_thread=False)
            self._file.execute("PRAGMA synchronous = NORMAL")
            self._file.execute("CREATE TABLE IF NOT EXISTS answers (identity TEXT PRIMARY KEY, answer TEXT NOT NULL)")
            self._file.execute("SELECT answer FROM answers LIMIT 1").fetchall()
        except (OSError, sqlite3.Error) as error:
            raise UserError(
                f"{key}={path}: no file to keep a judge's answers in ({one_line(error)}); give another, or {key}=null"
            ) from error

    def get(self, identity: str) -> str | None:
        """What was answered, if it was kept."""
        row = self._file.execute("SELECT answer FROM answers WHERE identity = ?", (identity,)).fetchone()
        return None if row is None else row[0]

    def put(self, identity: str, answer: str) -> None:
        """Keep an answer, the last one where several processes asked."""
        self._file.execute("INSERT OR REPLACE INTO answers VALUES (?, ?)", (identity, answer))

    def close(self) -> None:
        """Let go of the file."""
        self._file.close()
