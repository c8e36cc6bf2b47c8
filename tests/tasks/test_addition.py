import pytest
from pydantic import ValidationError

from tpg.errors import UserError
from tpg.tasks.addition import Addition
from tpg.tasks.base import Example


def test_pairs_of_one_to_nine():
    examples = Addition().load(seed=0)
    assert (len(examples.train), len(examples.evaluation)) == (65, 16)
    assert examples.evaluation[0] == Example("What is 5 + 7? Reply with the number only.", answer="12")
    assert examples.train[0] == Example("What is 6 + 7? Reply with the number only.", answer="13")
    assert len({example.prompt for example in examples.train + examples.evaluation}) == 81
    assert Addition().columns() == {"answer"}


def test_a_function_of_the_seed():
    assert Addition().load(seed=1) == Addition().load(seed=1)
    assert Addition().load(seed=1).evaluation != Addition().load(seed=2).evaluation


@pytest.mark.parametrize(("held_out", "sizes"), [(0.01, (3, 1)), (0.5, (2, 2)), (0.99, (1, 3))])
def test_something_is_left_on_either_side(held_out, sizes):
    examples = Addition(low=-1, high=0, held_out=held_out).load(seed=0)
    assert (len(examples.train), len(examples.evaluation)) == sizes


def test_refusals():
    with pytest.raises(UserError, match=r"task\.low=9 must be below task\.high=9"):
        Addition(low=9)
    with pytest.raises(ValidationError, match="held_out"):
        Addition(held_out=1.0)
