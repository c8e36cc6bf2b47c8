"""Baselines that are weighted means, computed by hand."""

import pydantic
import pytest
import torch
from builders import record, scored

from tpg.estimators.base import Answers
from tpg.estimators.obl import OBL
from tpg.estimators.opo import OPO
from tpg.estimators.otb import OTB
from tpg.estimators.weighted import cumulative_score_norms

NAN = float("nan")


def doubles(values) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def with_distribution(rewards, probs, squares, **fields):
    """One group; the probability of each token that was taken, and the sum of squared probabilities there."""
    width = max(map(len, probs))
    padded = [doubles([row + [NAN] * (width - len(row)) for row in rows]) for rows in (probs, squares)]
    return scored(
        rewards,
        lengths=[len(row) for row in probs],
        old_logprobs_BT=padded[0].log(),
        sum_squared_probs_BT=padded[1],
        **fields,
    )


# The first took token 0 at probabilities (.7, .2, .1), then token 1 at (.5, .3, .2): .09 + .04 + .01 = .14, then
# .25 + .49 + .04 = .78. The second took a token of probability .5 at (.5, .3, .2): .25 + .09 + .04 = .38.
# The third had no choice at first, then two tokens equally likely: 0, then .25 + .25 = .5.
THREE = {"probs": [[0.7, 0.3], [0.5], [1.0, 0.5]], "squares": [[0.54, 0.38], [0.38], [1.0, 0.5]]}
REWARDS = [1.0, 0.0, 2.0]


def close(weights_BT, expected):
    torch.testing.assert_close(weights_BT, doubles(expected), atol=1e-6, rtol=0)


def test_squared_score_norms_add_up_to_the_end_of_the_response():
    close(
        cumulative_score_norms(with_distribution(REWARDS, **THREE)),
        [[0.14, 0.92], [0.38, 0.38], [0.0, 0.5]],
    )


def test_tokens_that_the_policy_did_not_choose_add_nothing():
    mask_BT = torch.tensor([[False, True], [True, False], [True, False]])
    trajectories = with_distribution(REWARDS, **THREE, action_mask_BT=mask_BT)
    close(cumulative_score_norms(trajectories), [[0.0, 0.78], [0.38, 0.38], [0.0, 0.0]])


def test_the_engines_log_probs_serve_while_there_are_no_others():
    trajectories = with_distribution(REWARDS, **THREE)
    moved = trajectories.replace(old_logprobs_BT=None, rollout_logprobs_BT=trajectories.old_logprobs_BT)
    assert torch.equal(cumulative_score_norms(moved), cumulative_score_norms(trajectories))
    both = trajectories.replace(rollout_logprobs_BT=torch.full((3, 2), -5.0))
    assert torch.equal(cumulative_score_norms(both), cumulative_score_norms(trajectories))


def test_rounding_makes_no_norm_negative():
    # In float32 a token of probability 1 can be read as a little more, its square summed as a little less.
    logprobs_BT, squares_BT = torch.tensor([[1e-7], [0.0]]), torch.tensor([[1 - 1e-6], [1 - 1e-6]])
    sure = scored([1.0, 0.0], rollout_logprobs_BT=logprobs_BT, sum_squared_probs_BT=squares_BT)
    norms_BT = cumulative_score_norms(sure)
    assert (norms_BT >= 0).all()
    assert (norms_BT < 1e-6).all()


def test_length_weighted_mean():
    trajectories = scored([1.0, 0.0, 0.0, 0.0], lengths=[3, 1, 1, 3])
    # The mean is 3/8; of the others 0, 3/7, 3/7 and 3/5.
    close(OPO().weights(trajectories, Answers())[:, 0], [5 / 8, -3 / 8, -3 / 8, -3 / 8])
    close(OPO(leave_one_out=True).weights(trajectories, Answers())[:, 0], [1, -3 / 7, -3 / 7, -3 / 5])


def test_length_counts_the_tokens_that_the_policy_chose():
    mask_BT = torch.tensor([[True, False, False, True], [True, False, False, False]])
    trajectories = record(
        [[2]] * 2,
        [[2] * 4, [2]],
        row_B=torch.tensor([0, 0]),
        rewards_B=doubles([3.0, 0.0]),
        scored_B=torch.tensor([True, True]),
        action_mask_BT=mask_BT,
    )
    close(OPO().weights(trajectories, Answers()), [[1, 0, 0, 1], [-2, 0, 0, 0]])


def test_groups_and_what_is_not_scored_stay_apart():
    trajectories = scored(
        [1.0, 5.0, 0.0, 7.0, NAN, 4.0],
        rows=[0, 1, 0, 1, 0, 2],
        lengths=[1, 1, 3, 4, 5, 2],
        unscored=(4,),
    )
    # Means 1/4 and 33/5; the last is alone.
    close(OPO().weights(trajectories, Answers())[:, 0], [0.75, -1.6, -0.25, 0.4, 0, 0])
    close(OPO(leave_one_out=True).weights(trajectories, Answers())[:, 0], [1, -2, -1, 2, 0, 0])


def test_mean_weighted_by_the_norms_in_the_logits():
    trajectories = with_distribution(REWARDS, **THREE)
    assert OBL().requests(trajectories).distribution
    assert not OBL().requests(trajectories).score_norms
    # Norms .92, .38 and .5: the mean is 1.92 / 1.8; of the others 1 / .88, 1.92 / 1.42 and .92 / 1.3.
    close(OBL().weights(trajectories, Answers()), [[-0.066667, -0.066667], [-1.066667, 0], [0.933333, 0.933333]])
    close(
        OBL(leave_one_out=True).weights(trajectories, Answers()),
        [[-0.136364, -0.136364], [-1.352113, 0], [1.292308, 1.292308]],
    )


def test_mean_weighted_by_the_norms_in_the_parameters():
    trajectories = scored([2.0, 0.0, 1.0], score_norms_B=torch.tensor([1.0, 3.0, 4.0]))
    estimator = OBL(norm="parameters")
    assert estimator.requests(trajectories).score_norms
    assert not estimator.requests(trajectories).distribution
    # The mean is 6/8; of the others 4/7, 6/5 and 2/4.
    close(estimator.weights(trajectories, Answers())[:, 0], [1.25, -0.75, 0.25])
    others = OBL(norm="parameters", leave_one_out=True)
    close(others.weights(trajectories, Answers())[:, 0], [10 / 7, -1.2, 0.5])


def test_mean_weighted_by_the_norms_so_far():
    trajectories = with_distribution(REWARDS, **THREE)
    assert OTB().requests(trajectories).distribution
    # Norms .14, .38, 0 at the first token, .92, .38, .5 at the second: means .14 / .52 and 1.92 / 1.8.
    close(OTB().weights(trajectories, Answers()), [[0.730769, -0.066667], [-0.269231, 0], [1.730769, 0.933333]])
    # Means of the others 0 / .38, .14 / .14, .14 / .52 and 1 / .88, -, .92 / 1.3.
    close(
        OTB(leave_one_out=True).weights(trajectories, Answers()),
        [[1, -0.136364], [-1, 0], [1.730769, 1.292308]],
    )


def test_no_baseline_where_no_response_counts():
    sure = with_distribution([3.0, 1.0], probs=[[1.0, 0.5], [1.0, 0.5]], squares=[[1.0, 0.5], [1.0, 0.5]])
    close(OTB().weights(sure, Answers()), [[3, 1], [1, -1]])
    nothing = scored([3.0, 1.0], score_norms_B=torch.zeros(2))
    close(OBL(norm="parameters").weights(nothing, Answers()), [[3], [1]])
    one = scored([3.0, 1.0], score_norms_B=torch.tensor([2.0, 0.0]))
    close(OBL(norm="parameters", leave_one_out=True).weights(one, Answers()), [[3], [-2]])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_others_are_told_apart_beside_a_far_larger_one(dtype):
    trajectories = scored([1.0, 0.0, 3.0], score_norms_B=torch.tensor([1e-12, 3e-12, 1e12]).to(dtype), dtype=dtype)
    weights_B = OBL(norm="parameters", leave_one_out=True).weights(trajectories, Answers())[:, 0]
    assert weights_B.tolist() == pytest.approx([-2.0, -3.0, 2.75])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("rewards", [[2.0] * 3, [0.1] * 3, [1e9 + 0.1] * 3, [-1 / 3] * 3], ids=str)
@pytest.mark.parametrize("leave_one_out", [False, True])
@pytest.mark.parametrize("option", [OPO, OBL, OTB])
def test_equal_rewards_weigh_exactly_zero(option, leave_one_out, rewards, dtype):
    trajectories = with_distribution(rewards, [[0.7, 0.3], [0.5], [0.9, 0.5]], [[0.54, 0.38], [0.38], [0.82, 0.5]])
    trajectories = trajectories.replace(rewards_B=torch.tensor(rewards, dtype=dtype))
    assert not option(leave_one_out=leave_one_out).weights(trajectories, Answers()).any()


def test_huge_rewards_in_single_precision():
    trajectories = scored([1e30, 0.0], lengths=[1, 3], dtype=torch.float32)
    assert OPO().weights(trajectories, Answers())[:, 0].tolist() == pytest.approx([0.75e30, -0.25e30])


@pytest.mark.parametrize("option", [OPO, OBL, OTB])
def test_options_are_checked(option):
    assert option(leave_one_out=True).without() == {}
    assert option().without() == {"self-inclusion": option(leave_one_out=True)}
    with pytest.raises(pydantic.ValidationError, match="baseline"):
        option(baseline=1.0)


def test_the_norm_is_one_of_two():
    assert OBL(norm="parameters").without() == {"self-inclusion": OBL(norm="parameters", leave_one_out=True)}
    with pytest.raises(pydantic.ValidationError, match="norm"):
        OBL(norm="logit")
