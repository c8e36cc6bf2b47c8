"""Prompts with what was said to them: a table of one's own, and how it is divided into rows trained on and held out."""

import random
import reprlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Generic, Literal, TypeVar

from pydantic import Field

from tpg.component import component
from tpg.errors import UserError
from tpg.tasks.base import Message, held_out_count
from tpg.tasks.source import SUFFIXES, Format, Row, Source

T = TypeVar("T")
Prompt = str | tuple[Message, ...]


@dataclass(frozen=True)
class Parts(Generic[T]):
    """What to train on and what is held out; no prompt is in both."""

    train: tuple[T, ...]
    held_out: tuple[T, ...]
    notes: tuple[str, ...] = ()
    """What the user should know of how they came about, a line each."""


def divided(rows: Sequence[T], prompt_of: Callable[[T], Prompt], share: float, seed: int, key: str) -> Parts[T]:
    """Hold out all rows of a share of the prompts, drawn by the seed, so that none is in both parts.

    Raises `UserError` that begins with `key` if there are fewer than two prompts.
    """
    prompts = list(dict.fromkeys(repr(prompt_of(row)) for row in rows))
    if len(prompts) < 2:
        raise UserError(f"{key}: {len(prompts)} prompts are too few to hold one out; give at least 2")
    drawn = random.Random(f"{seed}-held-out").sample(prompts, held_out_count(len(prompts), share))
    return _by_prompts(rows, prompt_of, set(drawn))


def _by_prompts(rows: Sequence[T], prompt_of: Callable[[T], Prompt], held_out: set[str]) -> Parts[T]:
    train = tuple(row for row in rows if repr(prompt_of(row)) not in held_out)
    return Parts(train, tuple(row for row in rows if repr(prompt_of(row)) in held_out))


@component
class Table(ABC):
    """A local file or a dataset of the Hugging Face hub whose rows have a prompt each."""

    group: ClassVar[str]
    """The config group, with which the keys in messages begin."""

    path: str
    """A local file, or a local folder or hub id that the `datasets` library reads."""
    format: Literal["auto", "jsonl", "json", "csv", "parquet", "hub"] = "auto"
    """`auto` goes by the file's suffix; what has none of them is read by `datasets`."""
    prompt: str = "prompt"
    """The column of the prompts: text, or a list of messages ({role, content}) up to the assistant's turn."""
    name: str | None = None
    """The hub dataset's config."""
    split: str = "train"
    evaluation_split: str | None = None
    evaluation_path: str | None = None
    held_out: float = Field(default=0.1, gt=0, lt=1)
    """The share of the prompts whose rows are held out when no split or path is given for that."""
    train_limit: int | None = Field(default=None, ge=1)
    evaluation_limit: int | None = Field(default=None, ge=1)

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

    @abstractmethod
    def response_columns(self) -> dict[str, str]:
        """The other columns that are read, by the name of the field that gives each."""

    @abstractmethod
    def row(self, row: Row, place: str) -> Any:
        """A row as it is used. Raises `UserError` that begins with `place` for one that cannot be."""

    def check_files(self) -> None:
        """Raise `UserError` if a local file or one of its columns is missing; reads no more than headers."""
        for source in self._sources():
            if source.format == "hub" and Path(source.path).expanduser().is_file():
                raise UserError(
                    f"{source}: set {self.group}.format to what the file is ({', '.join(SUFFIXES.values())})"
                )
            source.check(self._columns())

    def read(self, prompt_of: Callable[[Any], Prompt], seed: int) -> Parts[Any]:
        """All rows in their order, divided. Raises `UserError` naming the row that lacks something."""
        first, *given = [self._rows(source) for source in self._sources()]
        if given:
            parts = _by_prompts([*first, *given[0]], prompt_of, {repr(prompt_of(row)) for row in given[0]})
            left_out = len(first) - len(parts.train)
            parts = Parts(parts.train, tuple(given[0]))
            note = f"{left_out} rows left out of training: their prompts are held out too"
            notes = (note,) if left_out else ()
        else:
            parts, notes = divided(first, prompt_of, self.held_out, seed, f"{self.group}.path={self.path}"), ()
        if not parts.train or not parts.held_out:
            use = "evaluate" if parts.train else "train"
            raise UserError(f"{self.group}.path={self.path}: no prompt is left to {use} on")
        return Parts(parts.train[: self.train_limit], parts.held_out[: self.evaluation_limit], notes)

    def _format_of(self, path: str) -> Format:
        return SUFFIXES.get(Path(path).suffix.lower(), "hub") if self.format == "auto" else self.format

    def _sources(self) -> list[Source]:
        key = f"{self.group}.path"
        sources = [Source(key, self.path, self._format_of(self.path), self.split, self.name)]
        if self.evaluation_split is not None:
            sources.append(Source(key, self.path, "hub", self.evaluation_split, self.name))
        if self.evaluation_path is not None:
            other = self.evaluation_path
            key = f"{self.group}.evaluation_path"
            sources.append(Source(key, other, self._format_of(other), self.split, self.name))
        return sources

    def _columns(self) -> dict[str, str]:
        columns = {"prompt": self.prompt, **self.response_columns()}
        return {f"{self.group}.{field}": column for field, column in columns.items()}

    def _rows(self, source: Source) -> list[Any]:
        columns = self._columns()
        made = []
        for number, row in enumerate(source.rows(columns), start=1):
            place = f"{source}, row {number}"
            for column in columns.values():
                if column not in row:
                    raise UserError(f"{place} has no {column}")
            made.append(self.row(row, place))
        return made


def prompt_of(value: Any, place: str) -> Prompt:
    """A cell that holds a prompt. Raises `UserError` that begins with `place` if it holds none."""
    if isinstance(value, str) and value.strip():
        return value
    messages = messages_of(value, place)
    if messages[-1]["role"] == "assistant":
        raise UserError(f"{place} ends with the assistant's turn, which is the response: leave it out")
    return messages


def messages_of(value: Any, place: str) -> tuple[Message, ...]:
    """A cell that holds a chat, without fields that are empty, which templates take for fields that are there."""
    if isinstance(value, list) and value and all(map(_is_message, value)):
        return tuple({key: field for key, field in message.items() if field is not None} for message in value)
    raise UserError(f"{place} must be text or a list of messages ({{role, content}}), not {reprlib.repr(value)}")


def response_of(value: Any, place: str) -> str:
    """A cell that holds a response: text, or a chat that ends with the assistant's turn, of which that is taken."""
    if isinstance(value, str):
        if value.strip():
            return value
        raise UserError(f"{place} is empty")
    last = messages_of(value, place)[-1]
    if last["role"] != "assistant":
        raise UserError(f"{place} does not end with the assistant's turn, but with that of '{last['role']}'")
    return str(last["content"])


def _is_message(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(value.get(key), str) for key in ("role", "content"))
