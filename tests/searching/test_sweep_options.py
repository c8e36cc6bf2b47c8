"""The options of the groups sweep/sampler and sweep/pruner say all that they have."""

import dataclasses
from pathlib import Path

import optuna
import pytest
from hydra.utils import get_class
from omegaconf import OmegaConf

from tpg.searching.parameters import Float, Int

FILES = sorted((Path(__file__).parents[2] / "conf" / "sweep").glob("*/*.yaml"))


def test_these_are_all():
    assert [f"{file.parent.name}={file.stem}" for file in FILES] == [
        "pruner=hyperband", "pruner=median", "pruner=none",
        "sampler=cmaes", "sampler=grid", "sampler=random", "sampler=tpe",
    ]  # fmt: skip


@pytest.mark.parametrize("file", FILES, ids=lambda file: f"{file.parent.name}={file.stem}")
@pytest.mark.filterwarnings("ignore")
def test_an_option_lists_every_field_and_builds(file):
    node = OmegaConf.to_container(OmegaConf.load(file))
    cls = get_class(node.pop("_target_"))
    assert set(node) == {field.name for field in dataclasses.fields(cls)}
    made = cls(**node)
    first, second = file.read_text().splitlines()[:2]
    assert first.startswith("# ")
    assert second.startswith(("# Most overridden: ", "# It has no key of its own"))
    if file.parent.name == "sampler":
        parameters = {"x": Float(low=0.0, high=1.0, points=2), "n": Int(low=1, high=2)}
        made.check(parameters, 1)
        assert isinstance(made.build(parameters), optuna.samplers.BaseSampler)
    else:
        assert isinstance(made.build(20), optuna.pruners.BasePruner)
        assert made.reads == (None if file.stem == "none" else "eval/reward")
