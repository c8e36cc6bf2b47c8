"""Every command that the docs print composes, as all of its jobs where it is a sweep."""

import json
import re
import shutil
import sys
from pathlib import Path

import pytest
from docs_commands import DOCS, PAGES, ROOT, Command, commands
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.plugins import Plugins
from omegaconf import OmegaConf

from tpg.composition import to_experiment
from tpg.errors import UserError
from tpg.jobs.configs import BOOKKEEPING
from tpg.jobs.searches import register_definitions
from tpg.pipelines.definition import stage_words

CONF = ROOT / "conf"
NAMES = {
    "tpg.sft": "sft", "tpg.reward": "reward",
    "tpg.train": "train", "tpg.audit": "audit", "tpg.evaluate": "evaluate", "tpg.sweep": "sweep",
    "tpg.plan": "plan", "tpg.automaton": "automaton",
    "tpg.report": "report", "tpg.show": "show", "tpg.pipeline": "pipeline",
}  # fmt: skip
"""The config of each entry that has one."""
PLACEHOLDERS = {"<time>": "2026-01-01_00-00-00"}
FLAGS = {"-m", "--multirun", "--help", "--resolve"}
NOT_HERE = ("trainer.accelerator=gpu: none here", "needs ")
"""What an experiment may lack on this machine: hardware, a package."""
ALL = [command for page in PAGES for command in commands(page)]


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    """A working directory with the files that the docs speak of."""
    folder = tmp_path_factory.mktemp("here") / "examples"
    shutil.copytree(DOCS / "examples", folder)
    lines = [
        json.dumps({"prompt": f"{i}?", "question": f"{i}?", "answer": str(i), "solution": str(i)}) for i in range(20)
    ]
    for name in ("data.jsonl", "train.jsonl", "test.jsonl"):
        (folder / name).write_text("\n".join(lines))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(sys, "path", [str(folder), *sys.path])
        yield folder


def overrides(command: Command) -> tuple[list[str], str]:
    """What is given to Hydra, and the folder of --config-dir."""
    words, folder = [], ""
    given = iter(command.arguments)
    for word in given:
        if word == "--config-dir":
            folder = str(Path(next(given)).absolute())
        elif word in ("--cfg", "--info"):
            next(given)
        elif word not in FLAGS | {"..."}:
            for placeholder, stands_for in PLACEHOLDERS.items():
                word = word.replace(placeholder, stands_for)
            words.append(word)
    return words, folder


def jobs(words: list[str], multirun: bool) -> list[list[str]]:
    """The first job of a sweep, and one for each further value of anything; a plain run is its only job."""
    if not multirun:
        return [words]
    parsed = OverridesParser.create().parse_overrides(words)
    choices = [
        [f"{o.get_key_element()}={value}" for value in o.sweep_string_iterator()] if o.is_sweep_override() else [word]
        for o, word in zip(parsed, words, strict=True)
    ]
    first = [values[0] for values in choices]
    others = [(at, value) for at, values in enumerate(choices) for value in values[1:]]
    return [first, *([*first[:at], value, *first[at + 1 :]] for at, value in others)]


def checked(experiment):
    """Why it cannot run, and what it warns of."""
    try:
        return "", experiment.check()
    except UserError as error:
        return str(error), []


def test_there_are_commands_of_every_entry():
    assert set(NAMES) | {"tpg.compare"} == {command.entry for command in ALL}
    assert len(ALL) > 60
    assert {command.page for command in ALL} >= {"README.md", "recipes.md", "sweeps.md", "faq.md", "migrating.md"}


@pytest.mark.parametrize("command", [c for c in ALL if c.entry != "tpg.compare"], ids=str)
def test_a_command_composes(command, here):
    Plugins.instance()  # launchers are options of theirs
    words, folder = overrides(command)
    words = register_definitions(words) if command.entry == "tpg.sweep" else words
    words = stage_words(words)[0] if command.entry == "tpg.pipeline" else words
    if folder:
        words.append(f"hydra.searchpath=[file://{folder}]")
    for job in jobs(words, "-m" in command.arguments):
        with initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
            config = compose(NAMES[command.entry], overrides=job)
            if command.entry not in ("tpg.train", "tpg.audit", "tpg.sweep", "tpg.plan") or config.resume:
                continue
            keys = [key for key in config if key not in (*BOOKKEEPING, "sweep", "plan")]
            experiment = to_experiment(OmegaConf.masked_copy(config, keys))
        if command.entry in ("tpg.audit", "tpg.plan"):
            continue  # they check the method alone, and a plan may be for another machine
        refused, warnings = checked(experiment)
        assert not refused or any(what in refused for what in NOT_HERE), refused
        assert not warnings, warnings


def test_a_sweep_tries_every_value_once_more():
    assert jobs(["seed=0,1", "a=b", "c=d,e"], multirun=True) == [
        ["seed=0", "a=b", "c=d"],
        ["seed=1", "a=b", "c=d"],
        ["seed=0", "a=b", "c=e"],
    ]


def test_comparisons_are_of_two_runs():
    for command in ALL:
        assert command.entry != "tpg.compare" or len(command.arguments) == 2


def test_the_pages_link_to_what_there_is():
    for page in PAGES:
        for link in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text()):
            assert link.startswith("http") or (page.parent / link).exists(), f"{page.name}: {link}"


def keys(group: str) -> set[str]:
    """Every key that an option of the group has, and every part of it."""
    found: set[str] = set()
    options = [OmegaConf.load(file) for file in (CONF / group).rglob("*.yaml")]
    for option in [*options, OmegaConf.load(CONF / "sweep.yaml").get(group, {})]:
        nodes = [("", OmegaConf.to_container(OmegaConf.create(option)))]
        for key, node in nodes:  # grows as it goes
            found.add(key)
            nodes += (
                [(f"{key}.{name}".lstrip("."), child) for name, child in node.items()] if isinstance(node, dict) else []
            )
    return found


@pytest.mark.parametrize("page", ["concepts", "recipes", "sweeps", "metrics", "migrating", "faq"])
def test_every_key_that_a_page_names_is_there(page):
    text = (DOCS / f"{page}.md").read_text()
    if page == "migrating":  # the first column has the keys of others
        text = "\n".join(row.split("|")[2] if row.startswith("| `") else row for row in text.splitlines())
    named = re.findall(r"[` ](\w+)\.([\w.]+\w)(?==|`)", text)
    groups = {folder.name for folder in CONF.iterdir() if folder.is_dir()} - {"algorithm", "experiment", "debug"}
    checked = [(group, key) for group, key in named if group in groups and not key.startswith(("py", "md"))]
    assert len(checked) > 5 or page in ("concepts", "sweeps")
    own = {"rank", "alpha"}
    for group, key in checked:
        assert key in keys(group) or key.split(".")[-1] in own, f"{group}.{key}"


def test_a_page_is_short():
    for name in ("concepts", "extending", "recipes", "sweeps", "metrics", "migrating", "faq"):
        assert len((DOCS / f"{name}.md").read_text().splitlines()) <= 150, name
