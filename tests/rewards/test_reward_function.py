"""A user's function as a reward term."""

import pickle
from pathlib import Path

import pytest
from pydantic import ValidationError

from tpg.rewards.base import Sample
from tpg.rewards.function import Function


@pytest.fixture(autouse=True)
def _importable(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parent))


SAMPLE = Sample(
    prompt="2+2=", response="4", token_ids=(9, 1), answer="4", columns={"difficulty": 3, "args": 1, "unread": None}
)


@pytest.mark.parametrize(
    ("name", "value", "columns"),
    [
        ("brevity", -1, set()),
        ("closeness", 3.5, {"answer", "difficulty"}),
        ("guess", 1, set()),
        ("everything", 8, set()),
    ],
)
def test_a_function_gets_what_its_parameters_name(name, value, columns):
    term = Function(function=f"user_rewards:{name}")
    assert term.score(SAMPLE) == value
    assert term.required_columns() == columns
    assert pickle.loads(pickle.dumps(term)) == term


def test_a_default_stands_in_for_a_missing_answer():
    assert Function(function="user_rewards:guess").score(Sample(prompt="", response="?")) == 1


@pytest.mark.parametrize("response", ["number as text", "nothing"])
def test_what_is_not_a_number_is_refused(response):
    with pytest.raises(TypeError, match=r"a reward must be a number, not ('1'|None)"):
        Function(function="user_rewards:misbehave").score(Sample(prompt="", response=response))


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("user_rewards", "'user_rewards' is not of the form module:function"),
        ("user_rewards:", "'user_rewards:' is not of the form module:function"),
        ("user_reward:brevity", "cannot import 'user_reward:brevity': .*No module named 'user_reward'"),
        ("user_rewards:brevety", "cannot import 'user_rewards:brevety': .*no attribute 'brevety'"),
        ("user_rewards:NOT_A_FUNCTION", "'user_rewards:NOT_A_FUNCTION' is no function but of type int"),
        ("user_rewards:only_by_position", "its parameter 'response' takes none"),
    ],
)
def test_a_function_that_cannot_be_called_is_refused_when_built(path, message):
    with pytest.raises(ValidationError, match=message):
        Function(function=path)
