"""The option files of the group `reward_model`."""

from dataclasses import fields
from pathlib import Path

import pytest
from hydra.utils import get_class
from omegaconf import OmegaConf

from tpg.rewards.base import RewardTerm, Term

OPTIONS = sorted(Path(__file__).parents[2].joinpath("conf", "reward_model").glob("*.yaml"))


@pytest.mark.parametrize("path", OPTIONS, ids=lambda path: path.stem)
def test_an_option_is_keyed_by_its_name_and_spells_out_every_field(path):
    option = OmegaConf.load(path)
    assert path.read_text().startswith("# ")
    assert list(option) == [path.stem]
    term = get_class(option[path.stem]._target_)
    assert issubclass(term, Term)
    assert set(option[path.stem]) == {"_target_", *(field.name for field in fields(term))}
    assert option[path.stem].weight == 1.0
    if issubclass(term, RewardTerm):
        default = next(field.default for field in fields(term) if field.name == "timeout_s")
        assert option[path.stem].timeout_s == getattr(default, "default", default)
