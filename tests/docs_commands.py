"""The commands that the docs print: lines of fenced blocks that begin with `python -m tpg.`; and how to run one."""

import importlib
import re
import shlex
import signal
import sys
from dataclasses import dataclass
from pathlib import Path

from hydra.core.global_hydra import GlobalHydra

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(DOCS.glob("*.md")), *sorted((ROOT / "sweeps").rglob("*.md"))]


@dataclass(frozen=True)
class Command:
    """One line to type."""

    page: str
    entry: str
    """A module, e.g. tpg.train."""
    arguments: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.page}:{self.entry} {' '.join(self.arguments)}"


def commands(page: Path) -> list[Command]:
    """Every command in fenced blocks of a page; a backslash at a line's end continues it, ` #` ends it."""
    found = []
    for block in re.findall(r"^ *```\w*\n(.*?)^ *```", page.read_text(), flags=re.MULTILINE | re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True) if re.match(r"\s*(\w+=\S+ )*python -m tpg\.", line) else []
            if words:
                at = words.index("-m")
                found.append(Command(page.name, words[at + 1], tuple(words[at + 2 :])))
    return found


def call(entry, arguments, monkeypatch):
    """Run an entry in this process."""
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")  # set by the entry; here so that it is undone
    monkeypatch.setattr(sys, "argv", [entry, *arguments])
    listening = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    GlobalHydra.instance().clear()
    try:
        importlib.import_module("tpg.audit.__main__" if entry == "tpg.audit" else entry).main()
    finally:
        GlobalHydra.instance().clear()
        for number, handler in listening.items():
            signal.signal(number, handler)
