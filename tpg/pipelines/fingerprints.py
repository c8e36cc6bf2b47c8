"""What a stage's result depends on, in one number, and what has changed of it."""

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tpg.leaves import leaves
from tpg.targets import PACKAGES

LEFT = ("policy", "reward_model", "reward_statistics.json")
"""What a stage leaves in its folder for others to read."""
HERE = "<run>"
"""Stands for the pipeline's own folder, so that it may be moved."""
CODE = ("_target_", "function")
"""Keys that name a class (module.Class) or a function (module:function)."""


@dataclass(frozen=True)
class Inputs:
    """What decides on what a stage leaves. Of code it is the user's modules that the config names."""

    config: Mapping[str, Any]
    """Its composed config by dotted key, without keys that change no number."""
    files: Mapping[str, str]
    """The digest of every file, folder and module of the user's that it reads, by name."""
    stages: Mapping[str, str]
    """The fingerprint of every stage that it names."""

    @property
    def fingerprint(self) -> str:
        """SHA-256, in hexadecimal."""
        return hashlib.sha256(json.dumps(self.record(), sort_keys=True).encode()).hexdigest()

    def record(self) -> dict[str, Any]:
        """As plain values."""
        plain: dict[str, Any] = json.loads(
            json.dumps({"config": self.config, "files": self.files, "stages": self.stages}, default=str)
        )
        return plain

    def changed(self, earlier: Mapping[str, Any]) -> str:
        """What differs from an earlier record, in a few words; empty if nothing does."""
        now = self.record()
        for kind in ("config", "files", "stages"):
            was, is_now = earlier.get(kind, {}), now[kind]
            keys = [key for key in {**was, **is_now} if was.get(key, "absent") != is_now.get(key, "absent")]
            if keys and kind == "config":
                first, *more = keys
                others = f" (also {', '.join(more[:5])}{', ...' if len(more) > 5 else ''})" if more else ""
                return f"{first} is {is_now.get(first, 'absent')} and was {was.get(first, 'absent')}{others}"
            if keys:
                return f"{keys[0]} is another" if kind == "files" else f"stage {keys[0]} ran with other inputs"
        return ""


def inputs_of(
    config: Mapping[str, Any],
    run: Path,
    references: Sequence[tuple[str, str]],
    fingerprints: Mapping[str, str],
    ignored: Sequence[str],
) -> Inputs:
    """The inputs of a stage with this resolved config, whose references are there.

    `ignored` are keys, or beginnings of dotted keys, that change no number.
    """
    kept = {key: value for key, value in leaves(config).items() if not _begins(key, ignored)}
    own = re.compile(re.escape(str(run)) + r"(?![\w.-])")  # and no other folder whose name begins alike
    named: dict[str, Any] = {key: _moved(value, own) for key, value in kept.items()}
    files = {f"{key}={value}": digest(Path(value).expanduser()) for key, value in _read(kept, own)}
    files |= {f"{key}={kept[key]}": digest(place, "*.py") for key, place in _code(kept)}
    for stage, path in references:
        places = [run / stage / path] if path else [run / stage / name for name in LEFT]
        files |= {f"{place.relative_to(run)}": digest(place) for place in places if place.exists()}
    return Inputs(named, files, {stage: fingerprints[stage] for stage, _ in references})


def digest(place: Path, kind: str = "*") -> str:
    """SHA-256 of a file's content, or of the names and contents of a folder's files of one kind."""
    if place.is_file():
        with place.open("rb") as content:
            return hashlib.file_digest(content, "sha256").hexdigest()
    whole = hashlib.sha256()
    for file in sorted(path for path in place.rglob(kind) if path.is_file()):
        whole.update(f"{file.relative_to(place)}\0{digest(file)}\n".encode())
    return whole.hexdigest()


def _begins(key: str, beginnings: Sequence[str]) -> bool:
    return any(key == each or key.startswith(f"{each}.") for each in beginnings)


def _moved(value: Any, run: re.Pattern[str]) -> Any:
    if isinstance(value, list):
        return [_moved(item, run) for item in value]
    return run.sub(HERE, value) if isinstance(value, str) else value


def _read(config: Mapping[str, Any], run: re.Pattern[str]) -> Iterator[tuple[str, str]]:
    """Keys whose values name files, or under a key `path` folders, outside the pipeline's own folder."""
    for key, value in config.items():
        for text in value if isinstance(value, list) else [value]:
            # Longer ones are no names, and raise where the system is asked.
            if not isinstance(text, str) or not 0 < len(text.encode()) < 1000 or "\0" in text or run.search(text):
                continue
            place = Path(text).expanduser()
            if _is(place, file=True) or (key.rpartition(".")[2].endswith("path") and _is(place, file=False)):
                yield key, text


def _code(config: Mapping[str, Any]) -> Iterator[tuple[str, Path]]:
    """Keys that name a class or a function of the working directory, with the module's file or the package's folder."""
    for key, value in config.items():
        name = re.split("[.:]", str(value))[0]
        if key.rpartition(".")[2] in CODE and name.isidentifier() and name not in PACKAGES:
            yield from ((key, place) for place in (Path(f"{name}.py"), Path(name)) if place.exists())


def _is(place: Path, file: bool) -> bool:
    try:
        return place.is_file() if file else place.is_dir()
    except OSError:  # a part of the name is too long for one
        return False
