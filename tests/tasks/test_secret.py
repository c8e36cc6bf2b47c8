"""The word that only the reward tells."""

import pytest

from tpg.errors import UserError
from tpg.tasks.secret import Secret

TASK = Secret(letters="abc", hidden=[1, 3], train_sizes=[5, 10], evaluation_sizes=[0, 4])


def test_prompts_hide_the_end_of_one_word():
    examples = TASK.load(0)
    assert [example.columns["hidden"] for example in examples.train] == [1] * 5 + [3] * 10
    assert [example.columns["hidden"] for example in examples.evaluation] == [3] * 4
    everything = (*examples.train, *examples.evaluation)
    assert len({example.text for example in everything}) == 19
    (word,) = {example.answer for example in everything}
    assert len(word) == 3
    assert set(word) <= set("abc")
    assert examples.train[0].text == f"{word[:2]}_ 1:"
    assert examples.train[5].text == "___ 5:"
    assert len({TASK.load(seed).evaluation[0].answer for seed in range(20)}) > 5


def test_demonstrations_are_guesses_at_other_words_and_none_is_held_out():
    pairs = TASK.demonstrations(0, 600)
    assert len(pairs) == 600
    assert not {example.text for example in TASK.load(0).evaluation} & {prompt for prompt, _ in pairs}
    for prompt, guess in pairs:
        shown = prompt.split()[0].rstrip("_")
        assert guess.startswith(shown)
        assert len(guess) == 3
        assert set(guess) <= set("abc")
    assert len({guess for prompt, guess in pairs if prompt.startswith("___")}) == 27


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"letters": "aba"}, "task.letters=aba: give each once"),
        ({"hidden": [2, 2]}, "give each once, with a size"),
        ({"train_sizes": [1, 2]}, "give each once, with a size"),
        ({"evaluation_sizes": [0]}, "ask for at least one prompt"),
    ],
)
def test_options_that_cannot_be_are_refused(options, complaint):
    with pytest.raises(UserError, match=complaint):
        Secret(**options)
