"""Combinations against hand-computed numbers, and what experiments say of them."""

import math
import re
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir

from tpg.composition import to_experiment
from tpg.errors import UserError
from tpg.rewards.base import Sample
from tpg.rewards.combination import Schedule, WeightedSum
from tpg.rewards.group_combinations import GDPO, LengthControlled, Rank
from tpg.rewards.length import LengthTarget
from tpg.rewards.model import RewardModel

ROOT = Path(__file__).parents[2]
NAN = math.nan


def samples(*groups, lengths=None):
    """One for each of these groups' numbers."""
    lengths = lengths or [1] * len(groups)
    return [
        Sample(prompt="", response="", token_ids=(0,) * length, group=(group, 0))
        for group, length in zip(groups, lengths, strict=True)
    ]


def near(expected):
    return pytest.approx(expected, nan_ok=True, abs=1e-12)


def experiment(*overrides):
    with initialize_config_dir(version_base="1.3", config_dir=str(ROOT / "conf")):
        config = compose("train", overrides=["debug=fast", *overrides])
    return to_experiment(type(config)({k: v for k, v in config.items() if k not in ("run_dir", "resume")}))


def test_the_sum_behind_a_gate():
    values = {
        "harmless": [0.5, 0.4, NAN, 0.9, 0.2],
        "helpful": [3.0, 7.0, 1.0, NAN, NAN],
        "short": [1.0, 1.0, 1.0, 1.0, 1.0],
    }
    combination = WeightedSum(gates={"harmless": 0.5})
    weights = {"harmless": 10.0, "helpful": 2.0, "short": -1.0}
    # Passed: all count; shut: the gate alone; a gate without a value: unscored; passed without a value that counts:
    # unscored; shut, so that the value that lacks does not count.
    expected = near([10.0, 4.0, NAN, NAN, 2.0])
    assert combination.rewards(values, weights, samples(0, 0, 0, 0, 0), 1) == expected
    assert combination.absolute(values, weights, samples(0, 0, 0, 0, 0)) == expected


def test_a_term_of_weight_zero_is_no_part_of_the_reward_unless_it_is_a_gate():
    values = {"right": [1.0, 2.0, NAN], "watched": [NAN, 5.0, 5.0]}
    weights = {"right": 2.0, "watched": 0.0}
    for combination in (WeightedSum(), LengthControlled(gates={})):
        assert combination.rewards(values, weights, samples(0, 0, 0), 1) == near([2.0, 4.0, NAN])
        assert combination.absolute(values, weights, samples(0, 0, 0)) == near([2.0, 4.0, NAN])
    assert GDPO(epsilon=0).rewards(values, weights, samples(0, 0, 0), 1) == near([-(2**0.5), 2**0.5, NAN])
    gated = WeightedSum(gates={"watched": 6.0})
    assert gated.rewards(values, weights, samples(0, 0, 0), 1) == near([NAN, 0.0, 0.0])
    fading = WeightedSum(schedules={"watched": Schedule(final=0.0, iterations=1)})
    own = {"right": 2.0, "watched": 1.0}
    assert fading.rewards(values, own, samples(0, 0, 0), 1) == near([NAN, 9.0, NAN])
    assert fading.rewards(values, own, samples(0, 0, 0), 2) == near([2.0, 4.0, NAN])


def test_every_gate_must_be_passed_and_rounding_shuts_none():
    combination = WeightedSum(gates={"a": 0.7, "b": -1.0})
    float32 = 0.699999988079071
    values = {"a": [float32, 0.7, 0.6], "b": [-1.0, -1.5, 0.0], "c": [1.0, 1.0, 1.0]}
    assert combination.rewards(values, dict.fromkeys("abc", 1.0), samples(0, 0, 0), 1) == near([float32, -0.8, 0.6])


def test_a_schedule_moves_a_weight_by_the_iteration_alone():
    combination = WeightedSum(schedules={"length": Schedule(final=0.5, iterations=4)})
    own = {"length": 2.5, "right": 1.0}
    weights = [combination.weights(own, iteration) for iteration in (5, 1, 2, 4, 500, None)]
    assert [each["length"] for each in weights] == [0.5, 2.5, 2.0, 1.0, 0.5, 0.5]
    assert {each["right"] for each in weights} == {1.0}
    values = {"length": [2.0], "right": [1.0]}
    assert [combination.rewards(values, own, samples(0), iteration) for iteration in (1, 2, 5)] == [[6.0], [5.0], [2.0]]
    assert combination.absolute(values, own, samples(0)) == [2.0]


def test_gdpo_sums_terms_that_are_normalised_in_their_group():
    values = {
        "right": [1.0, 0.0, 5.0, 0.0, 1.0, NAN, 5.0],
        "short": [10.0, 20.0, 7.0, 30.0, 40.0, 1e6, 9.0],
    }
    given = samples(0, 0, 1, 0, 0, 0, 1)
    weights = {"right": 1.0, "short": 0.5}
    # Group 0 without its unscored response: right has mean 1/2, std sqrt(1/3); short mean 25, std sqrt(500/3).
    right, short = 0.5 / math.sqrt(1 / 3), 0.5 / math.sqrt(500 / 3)
    own = [right - 15 * short, -right - 5 * short, -right + 5 * short, right + 15 * short]
    second = 0.5 / math.sqrt(2)  # short alone varies in group 1
    expected = [own[0], own[1], -second, own[2], own[3], NAN, second]
    assert GDPO(epsilon=0.0).rewards(values, weights, given, 1) == near(expected)
    assert [round(each, 6) for each in own] == [0.285078, -1.059675, -0.672376, 1.446973]
    assert GDPO().rewards(values, weights, given, 1)[2] == near(-0.5 / (math.sqrt(2) + 1e-4))
    assert GDPO().absolute(values, weights, given) == near([6.0, 10.0, 8.5, 15.0, 21.0, NAN, 9.5])


def test_gdpo_gives_nothing_to_equals_and_to_one_that_is_alone():
    values = {"a": [0.1, 0.1, 0.1, 3.0]}
    assert GDPO(epsilon=0.0).rewards(values, {"a": 1.0}, samples(0, 0, 0, 1), 1) == [0.0] * 4


def test_gdpo_normalises_the_zeros_behind_a_gate():
    values = {"right": [1.0, 0.0, 1.0], "short": [4.0, NAN, 2.0]}
    combination = GDPO(epsilon=0.0, gates={"right": 1.0})
    third = 1 / math.sqrt(3)  # right: mean 2/3, std 1/sqrt 3; short counts as 4, 0, 2: mean 2, std 2
    assert combination.rewards(values, {"right": 1.0, "short": 1.0}, samples(0, 0, 0), 1) == near(
        [third + 1, -2 * third - 1, third]
    )


def test_rank_among_the_scored_of_a_group():
    values = {"a": [5.0, 1.0, NAN, 1.0, 9.0, 2.0, 7.0], "b": [0.0, 0.0, 0.0, 0.0, 1e9, 0.0, 0.0]}
    given = samples(0, 0, 0, 0, 0, 1, 2)
    given[6] = given[5]
    # Sums 5, 1, 1 and the outlier: best 1, then 1/3; the two last share -1 and -1/3. Group 1: 2 and 7.
    assert Rank().rewards(values, {"a": 1.0, "b": 1.0}, given, 1) == near([1 / 3, -2 / 3, NAN, -2 / 3, 1.0, -1.0, 1.0])
    assert Rank().rewards({"a": [3.0, 3.0, 4.0]}, {"a": 1.0}, samples(0, 0, 1), 1) == [0.0, 0.0, 0.0]


def test_length_explains_a_line():
    given = samples(0, 0, 0, 0, 0, lengths=[1, 2, 3, 6, 50])
    values = {"a": [0.0, 1.0, 0.0, 3.0, NAN]}
    # Without the unscored: mean length 3, slope 8 / 14.
    assert LengthControlled().rewards(values, {"a": 1.0}, given, 1) == near([8 / 7, 11 / 7, 0.0, 9 / 7, NAN])
    assert LengthControlled().absolute(values, {"a": 2.0}, given) == near([0.0, 2.0, 0.0, 6.0, NAN])


def test_what_grows_with_length_alone_is_taken_off_and_the_mean_stays():
    given = samples(0, 0, 0, lengths=[2, 4, 9])
    assert LengthControlled().rewards({"a": [1.0, 2.0, 4.5]}, {"a": 1.0}, given, 1) == near([2.5] * 3)


@pytest.mark.parametrize("lengths", [[3, 3, 3, 3], [3, 3, 9, 9], [3, 9, 9, 9]])
def test_fewer_than_three_lengths_explain_nothing(lengths):
    values = {"a": [0.0, 1.0, 0.0, 3.0]}
    assert LengthControlled().rewards(values, {"a": 1.0}, samples(0, 0, 0, 0, lengths=lengths), 1) == values["a"]


@pytest.mark.parametrize(
    "combination", [GDPO(gates={"b": 0.1}), Rank(), LengthControlled()], ids=lambda c: type(c).__name__
)
def test_prompts_that_are_scored_elsewhere_change_nothing(combination):
    values = {"a": [0.3, 1.7, 0.2, 5.0, 5.5, 9.0], "b": [1.0, 0.0, 2.0, 4.0, 1.0, 1.0]}
    weights = {"a": 0.7, "b": -2.0}
    given = samples(0, 1, 0, 1, 0, 1, lengths=[4, 1, 2, 9, 7, 5])
    whole = combination.rewards(values, weights, given, 3)
    for places in ([0, 2, 4], [5, 1, 3]):
        own = {name: [column[place] for place in places] for name, column in values.items()}
        assert combination.rewards(own, weights, [given[place] for place in places], 3) == near(
            [whole[place] for place in places]
        )


def test_a_reward_model_combines_by_iteration_and_judges_without():
    terms = {
        "length": LengthTarget(target_tokens=4, tolerance_tokens=4),
        "short": LengthTarget(target_tokens=2, tolerance_tokens=2, weight=2.0),
    }
    combination = WeightedSum(gates={"short": 1.0}, schedules={"length": Schedule(final=0.0, iterations=2)})
    with RewardModel(terms, workers=1, combination=combination) as model:
        given = samples(0, 0, lengths=[2, 3])
        # length 0.5 and 0.75, short 1 and 0.5: the second is behind the gate.
        assert model.score(given, 1).total == [2.5, 1.0]
        assert model.score(given, 2).total == [2.25, 1.0]
        assert model.score(given).total == [2.0, 1.0]


SORT = ["task=sort", "reward_model=[sorted_digits,length]", "reward_model.length.target_tokens=5"]
MISTAKES = {
    ("+combination.gates.lenght=0.5",): "combination.gates.lenght: reward_model has no such term but sorted_digits,"
    " length; did you mean length?",
    ("+combination.schedules.x={final: 0, iterations: 3}",): "combination.schedules.x: reward_model has no such term"
    " but sorted_digits, length",
    ("+combination.schedules.length={final: 0, iterations: 0}",): "combination.schedules.length.iterations=0: ...",
    (
        "+combination.schedules.length={final: 0, iterations: 1, x: 1}",
    ): "combination.schedules.length.x: no such key; ...",
    (
        "combination=rank",
        "algorithm=remax",
    ): "combination: Rank compares the responses to one prompt, but estimator ReMax"
    " also scores greedy responses, which have none to be compared with; use ...",
    ("combination=gdpo", "algorithm=trepo"): "combination: GDPO ... also scores continuations, ...",
    ("combination=gdpo", "estimator=segment"): "combination: GDPO ... also scores continuations, ...",
    ("combination=rank", "estimator=reinforce", "rollout.responses_per_prompt=1"): "rollout.responses_per_prompt=1:"
    " combination: Rank compares the responses to one prompt and needs at least 2",
    ("combination=length_controlled", "rollout.responses_per_prompt=2"): "rollout.responses_per_prompt=2: combination:"
    " LengthControlled compares the responses to one prompt and needs at least 3",
}


@pytest.mark.parametrize("given", MISTAKES, ids=" ".join)
def test_a_mistake_is_told_in_one_line(given):
    with pytest.raises(UserError) as told:
        experiment(*SORT, *given).check()
    assert re.fullmatch(re.escape(MISTAKES[given]).replace(r"\.\.\.", ".*"), str(told.value)), told.value


def test_a_comparison_within_groups_is_another_objective_and_says_so():
    several = "rollout.responses_per_prompt=4"
    (warning,) = experiment(*SORT, several, "combination=rank").check()
    assert warning.startswith("combination: with Rank a response's reward depends on the others to its prompt")
    assert experiment(*SORT, several, "+combination.gates.length=0.5").check() == []
    relative = experiment(*SORT, several, "combination=rank", "curriculum=dynamic_sampling").check()
    assert "curriculum: DynamicSampling tells by rewards what is solved, and combination Rank makes them" in relative[1]


def test_guards_of_terms_watch_those_that_count_beside_others():
    def watched(*overrides):
        return [name for name in experiment(*SORT, *overrides).watched if "term" in name]

    both = [
        "constant_term/sorted_digits",
        "constant_term/length",
        "dominant_term/sorted_digits",
        "dominant_term/length",
    ]
    assert watched() == both
    assert watched("reward_model.length.weight=0") == []
    assert watched("reward_model.length.weight=0", "+combination.schedules.length={final: 1, iterations: 9}") == both
