"""The made language: its truth by hand, and data that show it."""

import itertools
import math
import random

import pytest

from tpg.errors import UserError
from tpg.rewards.base import Sample
from tpg.rewards.hidden_reward import HiddenReward as TrueReward
from tpg.rewards.hidden_reward import Truth
from tpg.tasks.hidden_reward import HiddenReward

SMALL = Truth(seed=7, letters=2, classes=2, length=3)


def test_a_letter_earns_what_it_is_worth_in_the_prompts_class_and_after_the_letter_before():
    rng = random.Random("7-hidden-reward-2-2")
    classes = [[rng.gauss(0, 0.5**0.5) for _ in "ab"] for _ in "ab"]
    after_a, after_b, at_first = [[rng.gauss(0, 0.5**0.5) for _ in "ab"] for _ in range(3)]
    a, b = classes
    assert SMALL.token_rewards("abb:", "aba") == [a[0] + at_first[0], a[1] + after_a[1], a[0] + after_b[0]]
    assert SMALL.token_rewards("bab:", "bb") == [b[1] + at_first[1], b[1] + after_b[1]]


def test_what_is_no_letter_and_what_is_too_long_costs_one():
    first, second = SMALL.token_rewards("aaa:", "ab")
    assert SMALL.token_rewards("aaa:", "abab") == [first, second, SMALL.token_rewards("aaa:", "aba")[2], -1.0]
    begins_anew = SMALL.token_rewards("aaa:", "b")[0]
    assert SMALL.token_rewards("aaa:", "czb") == [-1.0, -1.0, begins_anew]
    assert SMALL.token_rewards("aaa:", "") == []


@pytest.mark.parametrize("seed", range(4))
def test_the_best_response_by_trying_all(seed):
    truth = Truth(seed=seed, letters=3, classes=2, length=4)
    for prompt in ("aaa:", "bbb:"):
        words = ["".join(word) for length in range(6) for word in itertools.product("abcd", repeat=length)]
        returns = {word: sum(truth.token_rewards(prompt, word)) for word in words}
        value, word = truth.best(prompt)
        assert value == pytest.approx(max(returns.values()), abs=1e-12)
        assert returns[word] == pytest.approx(value, abs=1e-12)


def test_the_term_scores_the_sum_by_what_the_example_tells():
    example = HiddenReward(truth_seed=3).load(seed=5).train[0]
    sample = Sample(prompt=example.prompt, response="abba", columns=example.columns)
    earned = Truth(seed=3, letters=8, classes=4, length=8).token_rewards(example.prompt, "abba")
    assert len(earned) == 4
    assert TrueReward().score(sample) == sum(earned)
    assert TrueReward().required_columns() == HiddenReward().columns() == {"truth"}


def test_the_same_prompts_are_held_out_with_every_seed():
    task = HiddenReward(letters=3, classes=3, prompt_letters=3, train_size=15, evaluation_size=12)
    one, other = task.load(seed=0), task.load(seed=1)
    assert one.evaluation == other.evaluation
    assert {each.prompt for each in one.train} == {each.prompt for each in other.train}  # 27 words in all
    assert [each.prompt for each in one.train] != [each.prompt for each in other.train]
    held_out = {each.prompt for each in one.evaluation}
    shown = [prompt for prompt, _ in task.demonstrations(0, 200)]
    shown += [each.prompt for each in task.preferences(0, 200)]
    assert set(shown) == {each.prompt for each in one.train}
    assert not held_out & set(shown)


def test_data_are_functions_of_the_seed_and_more_of_them_begin_the_same():
    task = HiddenReward()
    assert task.preferences(1, 40)[:10] == task.preferences(1, 10) != task.preferences(2, 10)
    assert task.demonstrations(1, 40)[:10] == task.demonstrations(1, 10) != task.demonstrations(2, 10)
    assert HiddenReward(truth_seed=1).truth.table != task.truth.table


def test_demonstrations_earn_more_with_more_skill():
    means = []
    for skill in (0.0, 0.5, 2.0):
        task = HiddenReward(skill=skill)
        returns = [sum(task.truth.token_rewards(prompt, answer)) for prompt, answer in task.demonstrations(0, 400)]
        means.append(sum(returns) / len(returns))
        assert {len(answer) for _, answer in task.demonstrations(0, 100)} == {4, 5, 6, 7, 8}
    assert means[0] < means[1] - 1 < means[2] - 2


def test_preferences_follow_bradley_terry():
    task = HiddenReward(decisiveness=0.5)
    pairs = task.preferences(0, 3000)
    assert all(pair.chosen != pair.rejected for pair in pairs)

    def margin(pair):
        return sum(task.truth.token_rewards(pair.prompt, pair.chosen)) - sum(
            task.truth.token_rewards(pair.prompt, pair.rejected)
        )

    # Of pairs a margin d apart, a share of sigmoid(d / 2) prefers the better.
    for low, high in ((0.0, 1.0), (1.0, 2.0), (2.0, 4.0)):
        near = [margin(pair) for pair in pairs if low <= abs(margin(pair)) < high]
        expected = sum(1 / (1 + math.exp(-abs(each) / 2)) for each in near) / len(near)
        assert sum(each > 0 for each in near) / len(near) == pytest.approx(expected, abs=3 * 0.5 / len(near) ** 0.5)


def test_great_skill_still_gives_pairs():
    task = HiddenReward(letters=2, classes=1, length=1, skill=20.0, prompt_letters=9, train_size=8, evaluation_size=8)
    assert all(pair.chosen != pair.rejected for pair in task.preferences(0, 20))


def test_mistakes():
    with pytest.raises(UserError, match=r"task\.classes=5: .*task\.letters=4"):
        HiddenReward(letters=4, classes=5)
    with pytest.raises(UserError, match=r"task\.prompt_letters=2 gives 64 distinct prompts, .* ask for 65"):
        HiddenReward(prompt_letters=2, train_size=33, evaluation_size=32)
