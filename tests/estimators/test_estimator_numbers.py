"""Weights computed by hand."""

import pydantic
import pytest
import torch
from builders import scored

from tpg.estimators.base import Answers, Requests
from tpg.estimators.group import GRPO, GroupMean
from tpg.estimators.reinforce import Reinforce, ReinforceEMA
from tpg.estimators.reinforce_pp import ReinforcePP, ReinforcePPBaseline
from tpg.estimators.remax import ReMax
from tpg.estimators.rloo import RLOO

TWO_OF_EIGHT = [1.0, 0, 0, 1, 0, 0, 0, 0]
ONE_HIGH_OF_EIGHT = [0.0, 0.95, 0.95, 0.95, 0.95, 0.95, 0.95, 0.95]

# Three groups interleaved: 0, 2 and 5; 1, 3 and the unscored 6; 4 and 7, another draw of the first prompt.
INTERLEAVED = {
    "rewards": [1.0, 0.5, 0.0, -1.0, 2.0, 0.25, 9.0, 3.0],
    "rows": [4, 7, 4, 7, 4, 4, 7, 4],
    "draws": [0, 0, 0, 0, 1, 0, 0, 1],
    "unscored": (6,),
}
# The second group is left with one scored response.
LONELY = {"rewards": [1.0, 1.0, 0.0, 5.0], "rows": [0, 1, 0, 1], "unscored": (3,)}


def at(value: float, elsewhere: float, *places: int) -> list[float]:
    return [value if i in places else elsewhere for i in range(8)]


CASES = [
    ("rloo", RLOO(), {"rewards": TWO_OF_EIGHT}, at(0.857143, -0.285714, 0, 3)),
    ("group_mean", GroupMean(), {"rewards": TWO_OF_EIGHT}, at(0.75, -0.25, 0, 3)),
    ("grpo", GRPO(), {"rewards": TWO_OF_EIGHT}, at(1.61984, -0.53995, 0, 3)),
    ("grpo, four", GRPO(), {"rewards": [1.0, 0, 0, 1]}, [0.865875, -0.865875, -0.865875, 0.865875]),
    ("grpo, epsilon 1", GRPO(epsilon=1.0), {"rewards": [1.0, 0, 0, 1]}, [0.316987, -0.316987, -0.316987, 0.316987]),
    ("grpo, no std", GRPO(std="none"), {"rewards": TWO_OF_EIGHT}, at(0.75, -0.25, 0, 3)),
    ("rloo, leave one out", RLOO(), {"rewards": ONE_HIGH_OF_EIGHT}, at(-0.95, 0.135714, 0)),
    ("rloo, two", RLOO(), {"rewards": [3.0, 1.0]}, [2.0, -2.0]),
    ("reinforce", Reinforce(), {"rewards": [2.0, -1.0]}, [2.0, -1.0]),
    ("reinforce, baseline", Reinforce(baseline=0.5), {"rewards": [2.0, -1.0]}, [1.5, -1.5]),
    ("reinforce, interleaved", Reinforce(), INTERLEAVED, [1, 0.5, 0, -1, 2, 0.25, 0, 3]),
    ("rloo, interleaved", RLOO(), INTERLEAVED, [0.875, 1.5, -0.625, -1.5, -1, -0.25, 0, 1]),
    (
        "group_mean, interleaved",
        GroupMean(),
        INTERLEAVED,
        [0.583333, 0.75, -0.416667, -0.75, -0.5, -0.166667, 0, 0.5],
    ),
    (
        "grpo, interleaved",
        GRPO(),
        INTERLEAVED,
        [1.120682, 0.707040, -0.800487, -0.707040, -0.707007, -0.320195, 0, 0.707007],
    ),
    (
        "grpo, batch std",
        GRPO(std="batch"),
        INTERLEAVED,
        [0.439063, 0.564509, -0.313616, -0.564509, -0.376339, -0.125446, 0, 0.376339],
    ),
    ("rloo, one left", RLOO(), LONELY, [1, 0, -1, 0]),
    ("group_mean, one left", GroupMean(), LONELY, [0.5, 0, -0.5, 0]),
    ("grpo, one left", GRPO(), LONELY, [0.707007, 0, -0.707007, 0]),
    ("grpo without std, one left", GRPO(std="none"), LONELY, [0.5, 0, -0.5, 0]),
    ("grpo batch std, one left", GRPO(std="batch"), LONELY, [0.707007, 0, -0.707007, 0]),
    ("reinforce, one left", Reinforce(), LONELY, [1, 1, 0, 0]),
    ("reinforce_pp", ReinforcePP(), {"rewards": TWO_OF_EIGHT}, at(1.61984, -0.53995, 0, 3)),
    ("reinforce_pp, one", ReinforcePP(), {"rewards": [3.0]}, [0]),
    (
        "reinforce_pp, interleaved",  # mean 5.75 / 7, standard deviation 1.328488
        ReinforcePP(),
        INTERLEAVED,
        [0.134407, -0.241932, -0.618272, -1.370950, 0.887086, -0.430102, 0, 1.639764],
    ),
    (
        "reinforce_pp, no std",
        ReinforcePP(std=False),
        INTERLEAVED,
        [0.178571, -0.321429, -0.821429, -1.821429, 1.178571, -0.571429, 0, 2.178571],
    ),
    (
        "reinforce_pp_baseline, interleaved",  # standard deviation of the differences 0.600925
        ReinforcePPBaseline(),
        INTERLEAVED,
        [0.970564, 1.247868, -0.693260, -1.247868, -0.831912, -0.277304, 0, 0.831912],
    ),
    ("reinforce_pp, one left", ReinforcePP(), LONELY, [0.577250, 0.577250, -1.154501, 0]),
    ("reinforce_pp_baseline, one left", ReinforcePPBaseline(), LONELY, [0.707007, 0, -0.707007, 0]),
]


@pytest.mark.parametrize(("estimator", "rewards", "expected"), [pytest.param(*c[1:], id=c[0]) for c in CASES])
def test_weights(estimator, rewards, expected):
    weights_BT = estimator.weights(scored(**rewards), Answers())
    torch.testing.assert_close(weights_BT, torch.tensor(expected, dtype=torch.float64)[:, None], atol=1e-5, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("rewards", [[2.0] * 4, [0.1] * 3, [1 / 3] * 7, [1e9 + 0.1] * 5], ids=str)
@pytest.mark.parametrize(
    "estimator",
    [
        *(RLOO(), GroupMean(), GRPO(), GRPO(std="batch"), GRPO(epsilon=0), GRPO(std="none")),
        *(ReinforcePP(), ReinforcePP(epsilon=0), ReinforcePP(std=False), ReinforcePPBaseline(epsilon=0)),
    ],
    ids=repr,
)
def test_equal_rewards_weigh_exactly_zero(estimator, rewards, dtype):
    assert estimator.weights(scored(rewards, dtype=dtype), Answers()).tolist() == [[0.0]] * len(rewards)


@pytest.mark.parametrize("estimator", [ReinforcePP(), ReinforcePPBaseline()], ids=repr)
def test_the_spread_of_huge_rewards_fits_single_precision(estimator):
    weights_BT = estimator.weights(scored([1e30, 0, 0, 1e30], dtype=torch.float32), Answers())
    assert weights_BT[:, 0].tolist() == pytest.approx([0.866025, -0.866025, -0.866025, 0.866025])


def test_remax_subtracts_the_greedy_reward():
    trajectories = scored([1.0, 0.0, 3.0], rows=[0, 0, 1])
    answers = Answers(torch.tensor([0.25, 0.25, 5.0]).double(), torch.tensor([True, True, True]))
    assert ReMax().requests(trajectories).greedy
    assert ReMax().weights(trajectories, answers).tolist() == [[0.75], [-0.25], [-2.0]]


def test_remax_drops_what_has_no_greedy_reward():
    trajectories = scored([1.0, 0.0, 3.0, 4.0], rows=[0, 0, 1, 1], unscored=(3,))
    answers = Answers(
        torch.tensor([float("nan"), float("nan"), 5.0, 5.0]).double(), torch.tensor([False, False, True, True])
    )
    assert ReMax().kept(trajectories, answers).tolist() == [False, False, True, False]
    assert ReMax().weights(trajectories, answers).tolist() == [[0.0], [0.0], [-2.0], [0.0]]


def test_moving_average_over_three_iterations():
    estimator = ReinforceEMA(decay=0.9)
    state = estimator.initial_state()
    weights = []
    for rewards, unscored in [([1.0, 1.0], ()), ([0.0, float("nan")], (1,)), ([1.0, 0.0], ())]:
        trajectories = scored(rewards, unscored=unscored)
        weights.append(estimator.weights(trajectories, Answers(state=state))[:, 0].tolist())
        state = estimator.next_state(trajectories, state)
    # Means 1, 0 and 0.5; the average after two is (0.9 * 0.1 * 1) / 0.19, after three (0.081 + 0.1 * 0.5) / 0.271.
    assert weights[0] == [1.0, 1.0]
    assert weights[1] == pytest.approx([-1.0, 0.0])
    assert weights[2] == pytest.approx([0.526316, -0.473684], abs=1e-6)
    assert state == pytest.approx({"sum": 0.131, "weight": 0.271})


def test_moving_average_stands_when_nothing_is_scored():
    state = {"sum": 0.09, "weight": 0.19}
    assert ReinforceEMA().next_state(scored([float("nan"), 7.0], unscored=(0, 1)), state) == state


def test_other_estimators_carry_nothing():
    assert RLOO().initial_state() == {}
    assert RLOO().next_state(scored([1.0, 0.0]), {}) == {}
    assert vars(RLOO().requests(scored([1.0, 0.0]))) == vars(Requests())


@pytest.mark.parametrize(
    ("estimator", "expected"),
    [
        (Reinforce(), [True, True, True, False]),
        (ReinforceEMA(), [True, True, True, False]),
        (RLOO(), [True, False, True, False]),
        (GroupMean(), [True, False, True, False]),
        (GRPO(), [True, False, True, False]),
        (ReinforcePP(), [True, True, True, False]),
        (ReinforcePPBaseline(), [True, False, True, False]),
    ],
    ids=repr,
)
def test_kept(estimator, expected):
    assert estimator.kept(scored(**LONELY), Answers()).tolist() == expected


@pytest.mark.parametrize(
    ("option", "fields"),
    [
        (GRPO, {"epsilon": -1e-4}),
        (GRPO, {"std": "groups"}),
        (ReinforceEMA, {"decay": 1.0}),
        (Reinforce, {"baseline": float("nan")}),
        (RLOO, {"baseline": 0.0}),
        (ReinforcePP, {"epsilon": -1e-4}),
        (ReinforcePPBaseline, {"std": False}),
    ],
)
def test_options_are_checked(option, fields):
    with pytest.raises(pydantic.ValidationError, match=next(iter(fields))):
        option(**fields)
