"""Any dataset of Reasoning Gym, made on the spot."""

import contextlib
import dataclasses
import os
import pickle
import random
import subprocess
import sys
from typing import Any

from pydantic import Field

from tpg.component import component
from tpg.errors import UserError
from tpg.spelling import did_you_mean
from tpg.tasks.base import Example, Examples, Task

MAX_DRAWS = 8
"""Questions drawn at most, in multiples of those wanted."""
WITHOUT_ANSWER = frozenset({"boxnet", "graph_color", "propositional_logic", "rubiks_cube", "rush_hour"})
"""Datasets that judge a response by rules and have no answer key."""


@component
class ReasoningGym(Task):
    """Distinct questions of one dataset with parameters of one's own. (arXiv 2505.24760.)

    Raises `UserError` for an unknown dataset or parameter, or a value that the dataset refuses.
    """

    dataset: str
    params: dict[str, Any] = Field(default_factory=dict)
    """Fields of the dataset's config, e.g. `{max_terms: 3}`."""
    train_size: int = Field(default=512, ge=1)
    evaluation_size: int = Field(default=64, ge=1)

    def __post_init__(self) -> None:
        from reasoning_gym.factory import DATASETS

        if self.dataset not in DATASETS:
            raise UserError(
                f"task.dataset={self.dataset} is no dataset of Reasoning Gym{did_you_mean(self.dataset, DATASETS)} "
                "(all: github.com/open-thought/reasoning-gym/blob/main/GALLERY.md)"
            )
        _, config_class = DATASETS[self.dataset]
        allowed = sorted({field.name for field in dataclasses.fields(config_class)} - {"seed", "size"})
        for key in self.params:
            if key not in allowed:
                raise UserError(
                    f"task.params.{key} is no parameter of {self.dataset}{did_you_mean(key, allowed)} "
                    f"(allowed: {', '.join(allowed)})"
                )
        try:
            config = config_class(**self.params, seed=0, size=self.train_size + self.evaluation_size)
            if hasattr(config, "validate"):
                config.validate()
        except Exception as error:
            raise UserError(f"task.params={self.params}: {self.dataset} refuses them: {error}") from error

    def columns(self) -> frozenset[str]:
        """Offer `entry` as the dataset made it, the name `dataset`, and the answer where there is a key."""
        return frozenset({"entry", "dataset"} if self.dataset in WITHOUT_ANSWER else {"entry", "dataset", "answer"})

    def load(self, seed: int) -> Examples:
        """Make the questions. Raises `UserError` when the dataset fails or has too few distinct ones."""
        wanted = self.train_size + self.evaluation_size
        entries, duplicates = _draw_unsalted(self.dataset, self.params, seed, wanted)
        if len(entries) < wanted:
            raise UserError(
                f"task.dataset={self.dataset} gave {len(entries)} distinct questions in {MAX_DRAWS * wanted} draws, "
                f"but task.train_size={self.train_size} and task.evaluation_size={self.evaluation_size} ask for "
                f"{wanted}: lower them, or widen task.params"
            )
        examples = tuple(
            Example(entry["question"], entry["answer"], {"entry": entry, "dataset": self.dataset}) for entry in entries
        )
        return Examples(
            train=examples[self.evaluation_size :],
            evaluation=examples[: self.evaluation_size],
            notes=(f"{duplicates} duplicated questions of {self.dataset} left out",) if duplicates else (),
        )


def draw(dataset: str, params: dict[str, Any], seed: int, wanted: int) -> tuple[list[dict[str, Any]], int]:
    """Draw entries with `wanted` distinct questions, or as many as there are; also count the duplicates left out.

    Seeds the global generators, from which a few datasets draw.
    """
    import numpy
    import reasoning_gym

    random.seed(f"{seed}-reasoning-gym")
    numpy.random.seed(random.getrandbits(32))
    entries: dict[str, dict[str, Any]] = {}
    for draws in range(MAX_DRAWS * wanted):
        if len(entries) == wanted:
            return list(entries.values()), draws - wanted
        block, index = divmod(draws, wanted)
        if index == 0:
            # Entry i of a dataset is seeded with its seed + i, so datasets with near seeds would share entries.
            block_seed = random.Random(f"{seed}-reasoning-gym-{block}").getrandbits(31)
            source = reasoning_gym.create_dataset(dataset, **params, seed=block_seed, size=wanted)
        entry = source[index]
        entries.setdefault(entry["question"], entry)
    return list(entries.values()), MAX_DRAWS * wanted - len(entries)


def _draw_unsalted(dataset: str, *arguments: Any) -> tuple[list[dict[str, Any]], int]:
    """`draw` in an interpreter of its own: some datasets walk over sets, whose order depends on Python's hash salt."""
    child = subprocess.run(
        [sys.executable, "-m", __name__],
        input=pickle.dumps((dataset, *arguments)),
        env=os.environ | {"PYTHONHASHSEED": "0", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        capture_output=True,
    )
    if child.returncode != 0:
        complaint = child.stderr.decode(errors="replace").strip().splitlines() or [f"exit code {child.returncode}"]
        raise UserError(f"task.dataset={dataset} failed to make its questions: {complaint[-1]}")
    return pickle.loads(child.stdout)


if __name__ == "__main__":
    with contextlib.redirect_stdout(sys.stderr):  # some datasets print
        drawn = draw(*pickle.load(sys.stdin.buffer))
    sys.stdout.buffer.write(pickle.dumps(drawn))
