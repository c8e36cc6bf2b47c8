import pydantic
import pytest
import torch
from builders import record

from tpg.mismatch import Masked, NoMismatch, Truncated

NAN = float("nan")
# pi_train / pi_rollout of each token; over the responses 2 * 0.5 = 1 and 1.5 * 2 * 0.9 = 2.7.
RATIOS = [[2.0, 0.5, NAN], [1.5, 2.0, 0.9]]


def sampled(ratios=RATIOS, **fields):
    """A response of two tokens and one of three, whose trainer's log-probabilities differ from the rollout's -1."""
    rollout_BT = torch.full((len(ratios), len(ratios[0])), -1.0, dtype=torch.float64)
    old_BT = rollout_BT + torch.tensor(ratios, dtype=torch.float64).log()
    lengths = [sum(ratio == ratio for ratio in row) for row in ratios]
    responses = [[2] * length for length in lengths]
    made = record([[2]] * len(ratios), responses, rollout_logprobs_BT=rollout_BT, old_logprobs_BT=old_BT)
    return made.replace(**fields)


def chosen(mismatch, trajectories):
    """The factors of the tokens that the policy chose, row by row."""
    factors_BT = mismatch.factors(trajectories)
    rows = zip(factors_BT, trajectories.action_mask_BT, strict=True)
    return [factors_T[mask_T].tolist() for factors_T, mask_T in rows]


@pytest.mark.parametrize(
    ("mismatch", "expected"),
    [
        (Truncated(level="token", cap=1e9), [[2.0, 0.5], [1.5, 2.0, 0.9]]),
        (Truncated(level="token", cap=1.6), [[1.6, 0.5], [1.5, 1.6, 0.9]]),
        (Truncated(level="token", cap=1.0), [[1.0, 0.5], [1.0, 1.0, 0.9]]),
        (Truncated(level="sequence", cap=3.0), [[1.0, 1.0], [2.7, 2.7, 2.7]]),
        (Truncated(level="sequence", cap=2.0), [[1.0, 1.0], [2.0, 2.0, 2.0]]),
        (Masked(level="token", low=0.0, high=1e9), [[2.0, 0.5], [1.5, 2.0, 0.9]]),
        (Masked(level="token", low=0.6, high=1.8), [[0.0, 0.0], [1.5, 0.0, 0.9]]),
        (Masked(level="token", low=0.6, high=3.0), [[2.0, 0.0], [1.5, 2.0, 0.9]]),
        (Masked(level="sequence", low=0.6, high=1.8), [[1.0, 1.0], [0.0, 0.0, 0.0]]),
        (Masked(level="sequence", low=0.6, high=3.0), [[1.0, 1.0], [2.7, 2.7, 2.7]]),
    ],
    ids=repr,
)
def test_factors(mismatch, expected):
    assert chosen(mismatch, sampled()) == [pytest.approx(row, rel=1e-12) for row in expected]
    assert mismatch.corrects


def test_the_defaults():
    assert Truncated() == Truncated(level="sequence", cap=2.0)
    assert Masked() == Masked(level="sequence", low=0.5, high=2.0)


def test_none():
    assert NoMismatch().factors(sampled()) is None
    assert not NoMismatch().corrects
    assert NoMismatch().without() == {}


@pytest.mark.parametrize("level", ["token", "sequence"])
@pytest.mark.parametrize("option", [Truncated, Masked])
def test_where_rollout_and_trainer_agree_the_factor_is_one(option, level):
    assert chosen(option(level=level), sampled([[1.0, 1.0], [1.0, NAN]])) == [[1.0, 1.0], [1.0]]


@pytest.mark.parametrize("mismatch", [Truncated(), Truncated(level="token"), Masked(), Masked(level="token")], ids=repr)
def test_factors_are_finite_on_padding_and_carry_no_gradient(mismatch):
    trajectories = sampled()
    leaf_BT = trajectories.old_logprobs_BT.clone().requires_grad_()
    factors_BT = mismatch.factors(trajectories.replace(old_logprobs_BT=leaf_BT))
    assert factors_BT.isfinite().all()
    assert not factors_BT.requires_grad


def test_tool_output_within_a_response_does_not_count():
    mask_BT = torch.tensor([[True, True, False], [True, False, True]])
    trajectories = sampled(action_mask_BT=mask_BT)
    assert chosen(Truncated(cap=9.0), trajectories) == [pytest.approx([1.0, 1.0]), pytest.approx([1.35, 1.35])]


@pytest.mark.parametrize("level", ["token", "sequence"])
def test_a_ratio_beyond_all_numbers_is_bounded(level):
    trajectories = sampled([[1.0, 1.0]])
    trajectories = trajectories.replace(old_logprobs_BT=trajectories.rollout_logprobs_BT + 1000)
    assert chosen(Truncated(level=level, cap=2.0), trajectories) == [[2.0, 2.0]]
    assert chosen(Masked(level=level), trajectories) == [[0.0, 0.0]]


def test_what_is_blamed_for_bias():
    assert Truncated(cap=3.0).without() == {"truncated importance weights": Truncated(cap=1e9)}
    assert Truncated(level="token", cap=3.0).without() == {
        "truncated importance weights": Truncated(level="token", cap=1e9),
        "token-level importance weights": Truncated(level="sequence", cap=3.0),
    }
    assert Masked(low=0.2, high=3.0).without() == {"masked importance weights": Masked(low=0.0, high=1e9)}
    assert Masked(level="token", low=0.2, high=3.0).without() == {
        "masked importance weights": Masked(level="token", low=0.0, high=1e9),
        "token-level importance weights": Masked(level="sequence", low=0.2, high=3.0),
    }


def test_the_trainers_own_log_probabilities_are_needed():
    with pytest.raises(AssertionError, match="trainer's"):
        Truncated().factors(sampled(old_logprobs_BT=None))


@pytest.mark.parametrize(
    ("option", "fields", "named"),
    [
        (Truncated, {"cap": 0.9}, "cap"),
        (Truncated, {"level": "response"}, "level"),
        (Masked, {"low": 1.5}, "low"),
        (Masked, {"high": 0.9}, "high"),
        (Masked, {"low": -0.1}, "low"),
        (Masked, {"low": 1.0, "high": 1.0}, "leave nothing between"),
    ],
)
def test_impossible_bounds_are_refused(option, fields, named):
    with pytest.raises(pydantic.ValidationError, match=named):
        option(**fields)
