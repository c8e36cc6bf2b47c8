"""Success estimates and group spreads against literal numbers."""

import math

import pytest
import torch
from builders import record

from tpg.training.metrics import SamplingGap, UpdateMetrics, _group_spread, pass_at_k, success_estimates

nan = math.nan


@pytest.mark.parametrize(
    ("n", "solved", "k", "expected"),
    [(5, 2, 2, 0.7), (5, 2, 1, 0.4), (5, 0, 5, 0.0), (5, 1, 5, 1.0), (4, 4, 1, 1.0), (10, 3, 4, 5 / 6), (3, 2, 2, 1.0)],
)
def test_pass_at_k(n, solved, k, expected):
    assert pass_at_k(n, solved, k) == pytest.approx(expected)


def test_success_estimates_of_two_prompts_with_three_responses():
    rewards_KN = torch.tensor([[1.0, 0.0, 1.0], [0.0, 1.0, 0.5]])
    answers = [["7", "8", "7"], ["2", "3", "2"]]
    estimates = success_estimates(rewards_KN, answers, 1.0)
    assert estimates == {
        "reward": pytest.approx(3.5 / 6),
        "pass@1": pytest.approx(0.5),
        "pass@3": 1.0,
        "maj@3": 0.5,
    }


def test_a_majority_that_is_wrong_fails_and_a_tie_goes_to_the_first():
    wrong = success_estimates(torch.tensor([[0.0, 1.0, 0.0]]), [["2", "3", "2"]], 1.0)
    assert wrong["maj@3"] == 0.0
    tie = success_estimates(torch.tensor([[0.0, 1.0]]), [["2", "3"]], 1.0)
    assert tie["maj@2"] == 0.0
    tie = success_estimates(torch.tensor([[1.0, 0.0]]), [["3", "2"]], 1.0)
    assert tie["maj@2"] == 1.0


def test_unscored_responses_fail_and_stay_out_of_the_mean():
    estimates = success_estimates(torch.tensor([[nan, 1.0], [nan, 0.0]]), None, 1.0)
    assert estimates == {"reward": 0.5, "pass@1": 0.25, "pass@2": 0.5}


def test_one_response_has_no_vote():
    assert success_estimates(torch.tensor([[0.4], [0.6]]), [["1"], ["2"]], 0.5) == {
        "reward": pytest.approx(0.5),
        "pass@1": 0.5,
    }


def test_group_spread():
    rewards_B = torch.tensor([1.0, 0.0, 3.0, 3.0, 9.0, 5.0])
    scored_B = torch.tensor([True, True, True, True, False, True])
    group_B = torch.tensor([0, 0, 1, 1, 1, 2])
    deviation, zero = _group_spread(rewards_B, scored_B, group_B)
    assert deviation == pytest.approx(math.sqrt(0.5) / 3)
    assert zero == pytest.approx(2 / 3)


def test_the_spread_of_nothing_is_no_number():
    deviation, zero = _group_spread(torch.zeros(2), torch.tensor([False, False]), torch.tensor([0, 0]))
    assert math.isnan(deviation)
    assert math.isnan(zero)


def test_update_metrics_are_means_over_steps_and_tokens():
    gathered = UpdateMetrics()
    mask_BT = torch.tensor([[True, True], [True, False]])
    gathered.add(torch.tensor(0.5), {"ratio": torch.tensor([[1.0, 2.0], [3.0, nan]])}, mask_BT)
    gathered.add(torch.tensor(1.5), {"ratio": torch.tensor([[5.0]])}, torch.tensor([[True]]))
    gathered.grad_norms += [1.0, 2.0]
    gathered.learning_rate = 0.1
    assert gathered.summary() == {
        "loss": 1.0,
        "grad_norm": 1.5,
        "learning_rate": 0.1,
        "update/skipped_steps": 0,
        "ratio": 11 / 4,
    }


def test_update_metrics_of_an_iteration_without_tokens_are_zero():
    gathered = UpdateMetrics()
    gathered.grad_norms.append(0.0)
    assert gathered.summary() == {"loss": 0.0, "grad_norm": 0.0, "learning_rate": 0.0, "update/skipped_steps": 0}


# pi_trainer / pi_engine of three responses' tokens: 2 * 0.5, 3 and 0.25 * 2; the last column is tool output.
RATIOS = torch.tensor([[2.0, 0.5, 9.0], [3.0, nan, nan], [0.25, 2.0, 9.0]], dtype=torch.float64)
SEEN = record([[2]] * 3, [[2, 2, 2], [2], [2, 2, 2]], rollout_logprobs_BT=torch.full((3, 3), -1.0, dtype=torch.float64))
SEEN = SEEN.replace(action_mask_BT=SEEN.response_mask_BT & torch.tensor([True, True, False]))
LOG_2 = math.log(2)


@pytest.mark.parametrize("parts", [[[0, 1, 2]], [[2], [0, 1]], [[1], [0], [2]]])
def test_the_gap_between_trainer_and_engine(parts):
    gap = SamplingGap()
    for part in parts:
        gap.add(RATIOS[part].log() - 1.0, SEEN.select(torch.tensor(part)))
    assert gap.summary() == {
        "sampling/sampling_logp_difference/mean": pytest.approx((5 * LOG_2 + math.log(3)) / 5),
        "sampling/sampling_logp_difference/max": pytest.approx(2 * LOG_2),
        "mismatch/mean": pytest.approx(4.5 / 3),  # of 1, 3 and 1/2
        "mismatch/max": pytest.approx(3.0),
        "mismatch/ess": pytest.approx(4.5**2 / (1 + 9 + 0.25) / 3),
    }


def test_a_gap_beyond_all_numbers_leaves_finite_ones():
    gap = SamplingGap()
    gap.add(torch.tensor([[1e4]]), record([[2]], [[2]]))
    assert all(math.isfinite(value) for value in gap.summary().values())
    assert gap.summary()["mismatch/ess"] == pytest.approx(1.0)


def test_a_gap_that_nobody_saw_is_no_number():
    assert all(math.isnan(value) for value in SamplingGap().summary().values())
