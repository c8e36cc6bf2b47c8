"""Configs of the stages: every option composes, every key is one of the stage's, every command of the docs is one."""

import dataclasses
import json

import pytest
from docs_commands import DOCS, ROOT, commands
from hydra import compose, initialize_config_dir
from hydra.utils import get_class
from omegaconf import OmegaConf

from tpg.composition import built
from tpg.stages.options import PreferenceStage, SupervisedStage

CONF = ROOT / "conf"
STAGES = {"sft": SupervisedStage, "reward": PreferenceStage}
DATA = {"sft": "demonstrations", "reward": "preferences"}
FILES = [(entry, file) for entry, group in DATA.items() for file in sorted((CONF / group).glob("*.yaml"))]
OURS = [command for command in commands(DOCS / "stages.md") if command.entry in ("tpg.sft", "tpg.reward")]


def stage(entry, *overrides):
    with initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
        config = compose(entry, overrides=list(overrides))
    keys = [key for key in config if key not in ("run_dir", "resume")]
    return built(OmegaConf.masked_copy(config, keys), STAGES[entry]), config


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A working directory with the files that the docs speak of."""
    monkeypatch.chdir(tmp_path)
    rows = [{"prompt": f"{i}?", "response": f"{i}", "chosen": f"{i}", "rejected": "no", "gap": 1} for i in range(9)]
    text = "".join(json.dumps({**row, "messages": [], "question": "a", "solution": "b"}) + "\n" for row in rows)
    for name in ("demonstrations.jsonl", "chats.jsonl", "pairs.jsonl"):
        (tmp_path / name).write_text(text)
    return tmp_path


@pytest.mark.parametrize("entry", STAGES)
def test_the_defaults_are_a_stage_and_name_every_field_once(entry):
    made, config = stage(entry)
    made.check()
    assert set(config) - {"run_dir", "resume"} == {field.name for field in dataclasses.fields(STAGES[entry])}


@pytest.mark.parametrize(("entry", "file"), FILES, ids=lambda value: getattr(value, "stem", value))
def test_every_option_composes_and_builds(entry, file, here):
    group = DATA[entry]
    needed = [f"{group}.path={group.replace('preferences', 'pairs')}.jsonl"] if file.stem == "dataset" else []
    made, _ = stage(entry, f"{group}={file.stem}", *needed)
    made.check()
    assert type(getattr(made, group)) is get_class(OmegaConf.load(file)._target_)


def test_another_optimizer_keeps_the_stages_learning_rate():
    assert stage("sft", "optimizer=adamw_8bit")[0].optimizer.lr == stage("sft")[0].optimizer.lr == 2e-5
    assert stage("sft", "optimizer.lr=1e-3")[0].optimizer.lr == 1e-3


@pytest.mark.parametrize("command", OURS, ids=str)
def test_a_command_of_the_docs_is_a_stage_that_can_run(command, here):
    entry = command.entry.removeprefix("tpg.")
    words = [word for word in command.arguments if not word.startswith("resume=")]
    if words:
        stage(entry, *words, "trainer.accelerator=cpu")[0].check()  # of which there are enough everywhere
