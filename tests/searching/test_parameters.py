"""Ranges and lists: what they propose, what is checked of them, and how they are written."""

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from tpg.errors import UserError
from tpg.searching.parameters import Categorical, Float, Int, override


def test_as_optuna_knows_them():
    assert Float(low=1e-5, high=1e-3, log=True).distribution() == FloatDistribution(1e-5, 1e-3, log=True)
    assert Int(low=2, high=8, step=3).distribution() == IntDistribution(2, 8, step=3)
    assert Categorical(values=["rloo", 4, None]).distribution() == CategoricalDistribution(["rloo", 4, None])


def test_corners_are_both_ends_and_every_choice():
    assert Float(low=0.1, high=0.5).corners() == [0.1, 0.5]
    assert Int(low=2, high=8, step=3).corners() == [2, 8]
    assert Categorical(values=[True, "a", ["a", "b"]]).corners() == [True, "a", "[a,b]"]


def test_a_grid_is_evenly_spaced_also_in_the_logarithm():
    assert Float(low=0.0, high=1.0, points=5).grid("k") == [0.0, 0.25, 0.5, 0.75, 1.0]
    assert Float(low=1e-4, high=1e-2, log=True, points=3).grid("k") == pytest.approx([1e-4, 1e-3, 1e-2])
    assert Float(low=0.1, high=0.3, points=2).grid("k") == [0.1, 0.3]
    assert Int(low=2, high=8, step=3).grid("k") == [2, 5, 8]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (1e-5, "a.b=1e-05"),
        (True, "a.b=true"),
        (None, "a.b=null"),
        ("k3_in_loss", "a.b=k3_in_loss"),
        ("a b", "a.b='a b'"),
        ("it's", r"a.b='it\'s'"),
        ("", "a.b=''"),
        ("[exact_answer,length]", "a.b=[exact_answer,length]"),
        (["x", 1], "a.b=[x,1]"),
    ],
)
def test_a_value_is_written_as_hydra_reads_it(value, text):
    assert override("a.b", value) == text
    read = OverridesParser.create().parse_override(text).value()
    assert read == (["exact_answer", "length"] if value == "[exact_answer,length]" else value)


@pytest.mark.parametrize(
    ("parameter", "told"),
    [
        (Float(low=2, high=1), "k.low=2: should be less than high=1"),
        (Float(low=0, high=1, log=True), "k.low=0: a logarithmic range begins above 0"),
        (Int(low=1, high=9, step=2, log=True), "k.step=2: a logarithmic range has no step"),
        (Int(low=1, high=8, step=2), "k.step=2: does not lead from low=1 to high=8"),
        (Categorical(values=["a", "b", "a"]), 'k.values: "a" is listed twice'),
    ],
)
def test_what_is_no_range_is_refused(parameter, told):
    with pytest.raises(UserError) as refused:
        parameter.check("k")
    assert str(refused.value) == told


def test_true_is_not_one():
    Categorical(values=[1, True]).check("k")
