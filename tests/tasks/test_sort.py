import pytest

from tpg.errors import UserError
from tpg.tasks.base import Example
from tpg.tasks.sort import Sort


def test_six_digits():
    examples = Sort().load(seed=0)
    assert examples.evaluation[0] == Example("sort 062767:", answer="026677")
    assert examples.train[0] == Example("sort 817952:", answer="125789")
    assert (len(examples.train), len(examples.evaluation)) == (2048, 256)
    assert len({example.prompt for example in examples.train + examples.evaluation}) == 2304
    assert Sort().columns() == {"answer"}


def test_a_function_of_the_seed():
    assert Sort().load(seed=1) == Sort().load(seed=1)
    assert Sort().load(seed=1).evaluation != Sort().load(seed=2).evaluation


def test_every_number_of_one_digit():
    examples = Sort(digits=1, train_size=1, evaluation_size=9).load(seed=0)
    prompts = {example.prompt for example in examples.train + examples.evaluation}
    assert prompts == {f"sort {digit}:" for digit in range(10)}


def test_too_few_numbers():
    with pytest.raises(UserError, match=r"task\.digits=1 gives 10 distinct prompts, .* ask for 11"):
        Sort(digits=1, train_size=8, evaluation_size=3)


def test_demonstrations():
    task = Sort(digits=2, train_size=10, evaluation_size=80)
    pairs = task.demonstrations(seed=0, count=500)
    held_out = {example.prompt for example in task.load(seed=0).evaluation}
    assert len(pairs) == 500
    assert len({prompt for prompt, _ in pairs}) == 20
    assert not held_out & {prompt for prompt, _ in pairs}
    assert pairs[:100] == task.demonstrations(seed=0, count=100)
    assert Sort().demonstrations(seed=0, count=1) == (("sort 212794:", "122479"),)
