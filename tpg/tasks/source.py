"""Where the rows of a dataset are read from: a local file or the Hugging Face hub."""

import contextlib
import csv
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from tpg.component import component
from tpg.errors import UserError, one_line
from tpg.spelling import did_you_mean

Row = dict[str, Any]
Format = Literal["jsonl", "json", "csv", "parquet", "hub"]
SUFFIXES: dict[str, Format] = {".jsonl": "jsonl", ".json": "json", ".csv": "csv", ".parquet": "parquet"}
UNREADABLE: tuple[type[Exception], ...] = (OSError, ValueError, csv.Error)
"""What readers raise; bad JSON, bad UTF-8 and bad Parquet are ValueErrors."""


@dataclass(frozen=True)
class Source:
    """One table of rows. Local files are read directly, so nothing is cached or written."""

    key: str
    """The config key that gives the path, for error messages."""
    path: str
    format: Format
    split: str = "train"
    name: str | None = None

    def check(self, columns: dict[str, str]) -> None:
        """Raise `UserError` if the file or a column (by config key) is missing. The hub isn't asked.

        Reads a CSV's header, a Parquet file's schema, the first line of a JSONL file, the whole of a JSON file.
        """
        if self.format != "hub":
            if not self._file.is_file():
                raise UserError(f"{self}: no such file{did_you_mean(self._file.name, _siblings(self._file))}")
            self._require(columns, self._column_names())
        elif self._file.is_file():
            group = self.key.partition(".")[0]
            raise UserError(f"{self}: set {group}.format to what the file is ({', '.join(SUFFIXES.values())})")
        elif (self.path.startswith((".", "/", "~")) or self.path.count("/") > 1) and not self._file.is_dir():
            raise UserError(f"{self} is neither a file or folder nor a hub id (owner/name)")

    def rows(self, columns: dict[str, str]) -> list[Row]:
        """All rows, with at least these columns of the first. Raises `UserError` when they cannot be read."""
        self.check(columns)
        return self._hub_rows(columns) if self.format == "hub" else list(self._file_rows())

    def __str__(self) -> str:
        return f"{self.key}={self.path}"

    @property
    def _file(self) -> Path:
        return Path(self.path).expanduser()

    def _require(self, columns: dict[str, str], existing: Sequence[str]) -> None:
        for key, column in columns.items():
            if column not in existing:
                raise UserError(
                    f"{key}={column} is no column of {self.path}{did_you_mean(column, existing)} "
                    f"(columns: {', '.join(existing)})"
                )

    def _column_names(self) -> list[str]:
        if self.format == "parquet":
            import pyarrow.parquet

            with self._failing_in_one_line():
                return pyarrow.parquet.read_schema(self._file).names
        first = next(self._file_rows(), None)
        if first is None:
            raise UserError(f"{self} holds no rows")
        return list(first)

    def _file_rows(self) -> Iterator[Row]:
        readers: dict[str, Callable[[Path], Iterator[Any]]] = {
            "jsonl": _jsonl_rows,
            "json": _json_rows,
            "csv": _csv_rows,
            "parquet": _parquet_rows,
        }
        with self._failing_in_one_line():
            for number, row in enumerate(readers[self.format](self._file), start=1):
                if not isinstance(row, dict):
                    raise ValueError(f"row {number} is no record with named columns")
                yield row

    def _hub_rows(self, columns: dict[str, str]) -> list[Row]:
        from datasets import load_dataset
        from datasets.exceptions import DatasetsError

        place = str(self._file) if self._file.is_dir() else self.path
        with self._failing_in_one_line((*UNREADABLE, DatasetsError)):
            table = load_dataset(place, self.name, split=self.split)
        self._require(columns, table.column_names)
        return table.select_columns(list(dict.fromkeys(columns.values()))).to_list()

    @contextlib.contextmanager
    def _failing_in_one_line(self, errors: tuple[type[Exception], ...] = UNREADABLE) -> Iterator[None]:
        try:
            yield
        except errors as error:
            raise UserError(f"{self} cannot be read as {self.format}: {one_line(error)}") from error


@component
class Sources:
    """The files, or the splits of a hub dataset, that a config group names. Raises `UserError` for keys that clash."""

    group: ClassVar[str]
    """With which the keys in messages begin."""

    path: str
    """A local file, or a local folder or hub id that the `datasets` library reads."""
    format: Literal["auto", "jsonl", "json", "csv", "parquet", "hub"] = "auto"
    """`auto` goes by the file's suffix; what has none of them is read by `datasets`."""
    name: str | None = None
    """The hub dataset's config."""
    split: str = "train"
    evaluation_split: str | None = None
    evaluation_path: str | None = None

    def __post_init__(self) -> None:
        group = self.group
        if self.evaluation_split is not None and self.evaluation_path is not None:
            raise UserError(f"{group}.evaluation_split and {group}.evaluation_path exclude each other: give one")
        if self._format_of(self.path) != "hub":
            for key, default in (("name", None), ("split", "train"), ("evaluation_split", None)):
                if (given := getattr(self, key)) != default:
                    raise UserError(
                        f"{group}.{key}={given} is for hub datasets, but {group}.path={self.path} is a file"
                    )

    def sources(self) -> list[Source]:
        """The rows to train on, and those held out where a split or path is given for them."""
        key = f"{self.group}.path"
        found = [Source(key, self.path, self._format_of(self.path), self.split, self.name)]
        if self.evaluation_split is not None:
            found.append(Source(key, self.path, "hub", self.evaluation_split, self.name))
        if self.evaluation_path is not None:
            other = self.evaluation_path
            key = f"{self.group}.evaluation_path"
            found.append(Source(key, other, self._format_of(other), self.split, self.name))
        return found

    def _format_of(self, path: str) -> Format:
        return SUFFIXES.get(Path(path).suffix.lower(), "hub") if self.format == "auto" else self.format


def _siblings(file: Path) -> list[str]:
    return [path.name for path in file.parent.iterdir()] if file.parent.is_dir() else []


def _jsonl_rows(file: Path) -> Iterator[Any]:
    with file.open(encoding="utf-8-sig") as lines:
        for number, line in enumerate(lines, start=1):
            if line.strip():
                try:
                    yield json.loads(line)
                except json.JSONDecodeError as error:
                    raise ValueError(f"line {number}: {error.msg}, column {error.colno}") from error


def _json_rows(file: Path) -> Iterator[Any]:
    rows = json.loads(file.read_text(encoding="utf-8-sig"))
    if not isinstance(rows, list):
        raise ValueError("it must hold one list of records")
    yield from rows


def _csv_rows(file: Path) -> Iterator[Row]:
    with file.open(encoding="utf-8-sig", newline="") as lines:
        for number, row in enumerate(csv.DictReader(lines, strict=True), start=1):
            if None in row:
                raise ValueError(f"row {number} has more cells than the header")
            yield row


def _parquet_rows(file: Path) -> Iterator[Row]:
    import pyarrow.parquet

    for batch in pyarrow.parquet.ParquetFile(file).iter_batches():
        yield from batch.to_pylist()
