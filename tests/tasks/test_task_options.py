import dataclasses
import importlib
from pathlib import Path

import pytest
import yaml

FOLDER = Path(__file__).parents[2] / "conf" / "task"
MANDATORY = {
    "addition": {},
    "sort": {},
    "reasoning_gym": {"dataset": "power_function"},
    "dataset": {"path": "rows.jsonl"},
}


@pytest.mark.parametrize("name", MANDATORY)
def test_an_option_lists_every_field_with_its_default(name):
    text = (FOLDER / f"{name}.yaml").read_text()
    assert text.startswith("# ")
    option = yaml.safe_load(text)
    module, class_name = option.pop("_target_").rsplit(".", 1)
    task_class = getattr(importlib.import_module(module), class_name)
    assert {key for key, value in option.items() if value == "???"} == MANDATORY[name].keys()
    assert task_class(**option | MANDATORY[name]) == task_class(**MANDATORY[name])
    assert option.keys() == {field.name for field in dataclasses.fields(task_class)}
