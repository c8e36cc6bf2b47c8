"""The task of one prompt."""

import pytest
from pydantic import ValidationError

from tpg.tasks.numbered import Numbered


def test_the_text_is_numbered_and_the_last_are_held_out():
    examples = Numbered(text="go", train_size=3, evaluation_size=2).load(seed=5)
    assert [example.prompt for example in examples.train] == ["go 1", "go 2", "go 3"]
    assert [example.prompt for example in examples.evaluation] == ["go 4", "go 5"]
    assert {example.answer for example in (*examples.train, *examples.evaluation)} == {None}
    assert Numbered(text="go").columns() == frozenset()


def test_a_prompt_without_text_is_refused():
    with pytest.raises(ValidationError):
        Numbered(text="")
