"""Prompts with what was said to them: a table of one's own, and how it is divided into rows trained on and held out."""

import random
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from pydantic import Field

from tpg.component import component
from tpg.errors import UserError
from tpg.tasks.base import held_out_count
from tpg.tasks.cells import Prompt
from tpg.tasks.source import Row, Source, Sources

T = TypeVar("T")


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
class Table(Sources, ABC):
    """A local file or a dataset of the Hugging Face hub whose rows have a prompt each."""

    prompt: str = "prompt"
    """The column of the prompts: text, or a list of messages ({role, content}) up to the assistant's turn."""
    held_out: float = Field(default=0.1, gt=0, lt=1)
    """The share of the prompts whose rows are held out when no split or path is given for that."""
    train_limit: int | None = Field(default=None, ge=1)
    evaluation_limit: int | None = Field(default=None, ge=1)

    @abstractmethod
    def response_columns(self) -> dict[str, str]:
        """The other columns that are read, by the name of the field that gives each."""

    @abstractmethod
    def row(self, row: Row, place: str) -> Any:
        """A row as it is used. Raises `UserError` that begins with `place` for one that cannot be."""

    def check_files(self) -> None:
        """Raise `UserError` if a local file or one of its columns is missing; reads no more than headers."""
        for source in self.sources():
            source.check(self._columns())

    def read(self, prompt_of: Callable[[Any], Prompt], seed: int) -> Parts[Any]:
        """All rows in their order, divided. Raises `UserError` naming the row that lacks something."""
        first, *given = [self._rows(source) for source in self.sources()]
        if given:
            train = _by_prompts(first, prompt_of, {repr(prompt_of(row)) for row in given[0]}).train
            left_out = len(first) - len(train)
            parts = Parts(train, tuple(given[0]))
            note = f"{left_out} rows left out of training: their prompts are held out too"
            notes = (note,) if left_out else ()
        else:
            parts, notes = divided(first, prompt_of, self.held_out, seed, f"{self.group}.path={self.path}"), ()
        if not parts.train or not parts.held_out:
            use = "evaluate" if parts.train else "train"
            raise UserError(f"{self.group}.path={self.path}: no prompt is left to {use} on")
        return Parts(parts.train[: self.train_limit], parts.held_out[: self.evaluation_limit], notes)

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
