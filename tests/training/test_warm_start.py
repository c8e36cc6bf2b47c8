"""The supervised steps before the first iteration."""

import importlib
from pathlib import Path

import pytest
import yaml
from builders import tiny_policy

from tpg.tasks.base import Task
from tpg.tasks.hidden_reward import HiddenReward
from tpg.tasks.sort import Sort
from tpg.training.options import WarmStart
from tpg.training.warm_start import warm_start

FOLDER = Path(__file__).parents[2] / "conf" / "task"
MANY_HELD_OUT = [
    Sort(digits=2, train_size=10, evaluation_size=80),
    HiddenReward(letters=3, classes=3, prompt_letters=3, train_size=15, evaluation_size=12),
]


def demonstrating():
    """Every shipped task that has demonstrations."""
    for file in sorted(FOLDER.glob("*.yaml")):
        option = yaml.safe_load(file.read_text())
        module, name = option.pop("_target_").rsplit(".", 1)
        task = getattr(importlib.import_module(module), name)
        if task.demonstrations is not Task.demonstrations:
            yield pytest.param(task(**option), id=file.stem)


@pytest.mark.parametrize("task", demonstrating())
def test_no_demonstration_is_of_a_prompt_held_out(task):
    held_out = {example.text for example in task.load(7).evaluation}
    shown = {prompt for prompt, _ in task.demonstrations(7, 2000)}
    assert held_out
    assert shown
    assert not held_out & shown


@pytest.mark.parametrize("task", MANY_HELD_OUT, ids=lambda task: type(task).__name__)
def test_no_prompt_that_the_run_holds_out_is_demonstrated(task, monkeypatch):
    policy, shown = tiny_policy(), set()

    def statistics(demonstrations, temperature):
        prompts = zip(demonstrations.prompt_ids_BP, demonstrations.prompt_mask_BP, strict=True)
        shown.update(policy.tokenizer.decode(ids[mask], skip_special_tokens=True) for ids, mask in prompts)
        return type(policy).statistics(policy, demonstrations, temperature)

    monkeypatch.setattr(policy, "statistics", statistics)
    warm_start(policy, task, WarmStart(steps=2, examples_per_step=40), 7, 32, lambda loss: None)
    held_out = {example.text for example in task.load(7).evaluation}
    assert len(shown) > 5
    assert not held_out & shown
