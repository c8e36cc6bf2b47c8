"""What a pipeline is: named stages, each an entry with its overrides, which may name the folders of earlier ones."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

from pydantic import Field

from tpg.component import component
from tpg.errors import UserError
from tpg.spelling import did_you_mean

REFERENCE = re.compile(r"\$\{stage:\s*([\w-]+)\s*\}((?:/[\w.-]+)*)")
"""The folder of an earlier stage, and what is meant in it."""
RESERVED = frozenset({"pipeline", "outdated"})
"""Names of folders that a pipeline keeps beside those of its stages."""
WORD = re.compile(r"(?P<stage>[A-Za-z][\w-]*):(?P<word>[^=:]*(=.*)?)", flags=re.DOTALL)

TAKES_A_VALUE = frozenset({"--config-dir", "-cd", "--config-name", "-cn", "--config-path", "-cp"})
"""Hydra's own flags behind which a name stands, which may have a colon."""


@component
class Stage:
    """One process: `python -m tpg.<entry>` with these words."""

    entry: Literal["sft", "reward", "train", "evaluate"]
    overrides: list[str] = Field(default_factory=list)
    """As they are typed behind the entry; `${stage:NAME}` is the folder of the stage NAME."""

    def references(self) -> list[tuple[str, str]]:
        """The stages that it names, each with the path in its folder that is meant ("" for all of it)."""
        found = [match for word in self.overrides for match in REFERENCE.findall(word)]
        return list(dict.fromkeys((name, path.lstrip("/")) for name, path in found))

    def words(self, folder: Path) -> list[str]:
        """The overrides with the places of the other stages, whose folders lie in `folder`."""
        return [REFERENCE.sub(lambda match: escaped(folder / match[1]) + match[2], word) for word in self.overrides]

    def with_words(self, words: Sequence[str]) -> "Stage":
        """With more of them; a later word for a key stands in place of an earlier one."""
        by_key = {key_of(word): word for word in self.overrides}
        for word in words:
            by_key.pop(key_of(word), None)
            by_key[key_of(word)] = word
        return replace(self, overrides=list(by_key.values()))


@component
class Pipeline:
    """Stages by name, in the order in which they run."""

    stages: dict[str, Stage] = Field(min_length=1)

    def check(self) -> None:
        """Raise `UserError` for a stage's name that cannot be a folder's, and for a reference to no earlier stage."""
        earlier: list[str] = []
        for name, stage in self.stages.items():
            if name in RESERVED or re.fullmatch(r"[A-Za-z][\w-]*", name) is None:
                raise UserError(
                    f"pipeline.stages.{name}: is no name for a stage; give letters, digits, - and _, and none of"
                    f" {', '.join(sorted(RESERVED))}"
                )
            for other, _ in stage.references():
                if other not in earlier:
                    there = f"there are {', '.join(earlier)}" if earlier else "this is the first"
                    raise UserError(
                        f"{name}: ${{stage:{other}}}: no stage of this name comes before it; {there}"
                        f"{did_you_mean(other, earlier)}"
                    )
            for word in stage.overrides:
                if key_of(word) in ("run_dir", "resume"):
                    raise UserError(f"{name}:{word}: the pipeline gives each stage its folder; leave it out")
            earlier.append(name)

    def with_words(self, words: Mapping[str, Sequence[str]]) -> "Pipeline":
        """With more words for stages by name. Raises `UserError` for a name that there is not."""
        for name, given in words.items():
            if name not in self.stages:
                raise UserError(
                    f"{name}:{given[0]}: no stage of this name; there are {', '.join(self.stages)}"
                    f"{did_you_mean(name, self.stages)}"
                )
        return Pipeline(stages={name: stage.with_words(words.get(name, [])) for name, stage in self.stages.items()})


def key_of(word: str) -> str:
    """The key or group that an override speaks of."""
    return word.split("=")[0].lstrip("+~")


def stage_words(arguments: Sequence[str]) -> tuple[list[str], dict[str, list[str]]]:
    """What is for the pipeline, and what is for its stages by name: `train:optimizer.lr=0.1` and the like."""
    own: list[str] = []
    for_stages: dict[str, list[str]] = {}
    for before, argument in zip(["", *arguments], arguments, strict=False):
        flag = argument.startswith("-") or before in TAKES_A_VALUE
        match = None if flag else WORD.fullmatch(argument)
        if match is None:
            own.append(argument)
        else:
            for_stages.setdefault(match["stage"], []).append(match["word"])
    return own, for_stages


def escaped(path: Path | str) -> str:
    """A path as an override's unquoted value."""
    return re.sub(r"([\\()\[\]{}:=, \t])", r"\\\1", str(path))
