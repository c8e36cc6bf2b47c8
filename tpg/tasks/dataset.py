"""A dataset of one's own: a local file or a dataset of the Hugging Face hub."""

import math
import random
import reprlib
from typing import Any, ClassVar

from pydantic import Field

from tpg.component import component
from tpg.errors import UserError
from tpg.tasks.base import Example, Examples, Task, held_out_count
from tpg.tasks.cells import prompt_of
from tpg.tasks.source import Row, Source, Sources


@component
class Dataset(Sources, Task):
    """Rows of a table, one prompt each. Raises `UserError` for keys that don't go together."""

    group: ClassVar[str] = "task"
    prompt: str = "prompt"
    """The column of the prompts: text, or a list of messages ({role, content}) up to the assistant's turn."""
    answer: str | None = "answer"
    """The column of the answer keys: text or numbers."""
    extra_columns: list[str] = Field(default_factory=list)
    """Further columns that rewards may read."""
    held_out: float = Field(default=0.1, gt=0, lt=1)
    """The share of the rows kept for evaluation, drawn by the seed, when no split or path is given for it."""
    train_limit: int | None = Field(default=None, ge=1)
    evaluation_limit: int | None = Field(default=None, ge=1)

    def __post_init__(self) -> None:
        Sources.__post_init__(self)
        if "answer" in self.extra_columns:
            raise UserError("task.extra_columns: the column of the answer keys goes into task.answer")

    def columns(self) -> frozenset[str]:
        """Offer the answer if there is a key, and the extra columns."""
        return frozenset(self.extra_columns) | (frozenset() if self.answer is None else {"answer"})

    def check(self) -> None:
        """Raise `UserError` if a local file or one of its columns is missing; reads no more than headers."""
        for source in self.sources():
            source.check(self._columns_by_key())

    def load(self, seed: int) -> Examples:
        """Read the rows, in their order. Raises `UserError` naming the row that has no prompt or answer."""
        train, *given = map(self._examples, self.sources())
        if given:
            evaluation = given[0]
        else:
            if len(train) < 2:
                raise UserError(f"task.path={self.path}: {len(train)} rows are too few to hold one out for evaluation")
            count = min(held_out_count(len(train), self.held_out), self.evaluation_limit or len(train))
            chosen = set(random.Random(f"{seed}-held-out").sample(range(len(train)), count))
            evaluation = [example for i, example in enumerate(train) if i in chosen]
            train = [example for i, example in enumerate(train) if i not in chosen]
        held_out = {example.text for example in evaluation}
        new = [example for example in train if example.text not in held_out]
        if not new or not evaluation:
            raise UserError(f"task.path={self.path}: no prompt is left to {'evaluate' if new else 'train'} on")
        duplicates = len(train) - len(new)
        return Examples(
            train=tuple(new[: self.train_limit]),
            evaluation=tuple(evaluation[: self.evaluation_limit]),
            notes=(f"{duplicates} prompts left out of training: they are held out too",) if duplicates else (),
        )

    def _columns_by_key(self) -> dict[str, str]:
        extra = {f"task.extra_columns[{i}]": column for i, column in enumerate(self.extra_columns)}
        answer = {} if self.answer is None else {"task.answer": self.answer}
        return {"task.prompt": self.prompt, **answer, **extra}

    def _examples(self, source: Source) -> list[Example]:
        rows = source.rows(self._columns_by_key())
        return [self._example(row, f"{source}, row {number}") for number, row in enumerate(rows, start=1)]

    def _example(self, row: Row, place: str) -> Example:
        missing = [column for column in self._columns_by_key().values() if column not in row]
        if missing:
            raise UserError(f"{place} has no {missing[0]}")
        answer = None if self.answer is None else _answer(row[self.answer], f"{place}: {self.answer}")
        columns = {column: row[column] for column in self.extra_columns}
        return Example(prompt_of(row[self.prompt], f"{place}: {self.prompt}"), answer, columns)


def _answer(value: Any, place: str) -> str:
    if isinstance(value, str) and value.strip():
        return value
    if isinstance(value, int | float) and math.isfinite(value):
        return str(value)
    raise UserError(f"{place} must be text or a number, not {reprlib.repr(value)}")
