"""Sorting numbers of several lengths."""

import pytest

from tpg.errors import UserError
from tpg.tasks.ladder import Ladder

TASK = Ladder(lengths=[2, 5], train_sizes=[20, 30], evaluation_sizes=[10, 0])


def test_so_many_prompts_of_each_length_with_their_answers():
    examples = TASK.load(0)
    assert [example.columns["digits"] for example in examples.train] == [2] * 20 + [5] * 30
    assert [example.columns["digits"] for example in examples.evaluation] == [2] * 10
    texts = [example.text for example in (*examples.train, *examples.evaluation)]
    assert len(set(texts)) == 60
    for example in examples.train:
        digits = example.text.removeprefix("sort ").removesuffix(":")
        assert len(digits) == example.columns["digits"]
        assert example.answer == "".join(sorted(digits))
    assert TASK.load(0) == examples
    assert TASK.load(1) != examples


def test_demonstrations_are_of_the_first_length_and_none_is_held_out():
    pairs = TASK.demonstrations(0, 500)
    assert len(pairs) == 500
    assert all(len(answer) == 2 and "".join(sorted(prompt[5:7])) == answer for prompt, answer in pairs)
    held_out = {example.text for example in TASK.load(0).evaluation}
    assert not held_out & {prompt for prompt, _ in pairs}
    assert len({prompt for prompt, _ in pairs}) == 90  # all the others


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"lengths": [2, 2]}, "give each once"),
        ({"train_sizes": [1, 2, 3]}, "give each once, with a size"),
        ({"lengths": [1, 6], "train_sizes": [10, 1]}, "there are 10 numbers of 1 digits"),
        ({"train_sizes": [0, 0]}, "ask for at least one prompt"),
    ],
)
def test_sizes_that_cannot_be_are_refused(options, complaint):
    with pytest.raises(UserError, match=complaint):
        Ladder(**options)


def test_nothing_is_left_to_demonstrate():
    task = Ladder(lengths=[1, 2], train_sizes=[0, 5], evaluation_sizes=[10, 5])
    with pytest.raises(UserError, match="leaves none to demonstrate"):
        task.demonstrations(0, 1)
