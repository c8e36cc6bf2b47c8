"""The losses, the calibration and the order of rows by hand."""

import math

import pytest
import torch

from tpg.stages.calibration import Bin, accuracy, bradley_terry, calibration_error, reliability
from tpg.stages.order import Order
from tpg.stages.preference import reward_statistics

THREE, NINE = math.log(3), math.log(9)  # sigmoid 3/4 and 9/10


def rewards(*values):
    return torch.tensor(values, dtype=torch.float64, requires_grad=True)


@pytest.mark.parametrize(
    ("margins", "centering", "losses", "chosen", "rejected"),
    [
        # log(4/3) and log 4: the chosen one has odds of 3 to 1, and of 1 to 3.
        ((0.0, 0.0), 0.0, (0.2876820724517809, 1.3862943611198906), (-0.25, -0.75), (0.25, 0.75)),
        # A margin of log 3 makes the odds even, and 1 to 9.
        ((THREE, THREE), 0.0, (0.6931471805599453, 2.302585092994046), (-0.5, -0.9), (0.5, 0.9)),
        # 0.1 (r_c + r_r)^2, whose derivative is 0.2 (r_c + r_r); here the sums are 2 + log 3 and -log 3.
        (
            (0.0, 0.0),
            0.1,
            (0.2876820724517809 + 0.1 * (2 + THREE) ** 2, 1.3862943611198906 + 0.1 * THREE**2),
            (-0.25 + 0.2 * (2 + THREE), -0.75 - 0.2 * THREE),
            (0.25 + 0.2 * (2 + THREE), 0.75 - 0.2 * THREE),
        ),
    ],
    ids=["plain", "margin", "centred"],
)
def test_bradley_terry(margins, centering, losses, chosen, rejected):
    chosen_B, rejected_B = rewards(1 + THREE, -THREE), rewards(1.0, 0.0)
    found = bradley_terry(chosen_B, rejected_B, torch.tensor(margins, dtype=torch.float64), centering)
    found.sum().backward()
    torch.testing.assert_close(found, torch.tensor(losses, dtype=torch.float64), atol=1e-12, rtol=0)
    torch.testing.assert_close(chosen_B.grad, torch.tensor(chosen, dtype=torch.float64), atol=1e-12, rtol=0)
    torch.testing.assert_close(rejected_B.grad, torch.tensor(rejected, dtype=torch.float64), atol=1e-12, rtol=0)


def test_rewards_far_apart_have_a_finite_loss():
    far = bradley_terry(rewards(0.0), rewards(1000.0), torch.zeros(1, dtype=torch.float64), 0.0)
    assert far.tolist() == [1000.0]


def test_vectors_of_other_lengths_are_refused():
    with pytest.raises(ValueError, match="one length"):
        bradley_terry(rewards(0.0, 1.0), rewards(1.0), torch.zeros(1), 0.0)


def test_a_tie_is_half_right():
    assert accuracy(torch.tensor([1.0, -1.0, 0.0, 2.0])) == 0.625


def test_calibration_by_hand():
    # Four pairs told with confidence 3/4, three of them right: calibrated. Two with 9/10, one right: off by 0.4.
    differences_B = torch.tensor([THREE, THREE, -THREE, THREE, NINE, -NINE], dtype=torch.float64)
    first, second = reliability(differences_B, bins=4)
    assert (first.pairs, second.pairs) == (4, 2)
    assert (first.confidence, first.accuracy) == pytest.approx((0.75, 0.75))
    assert (second.confidence, second.accuracy) == pytest.approx((0.9, 0.5))
    assert calibration_error([first, second]) == pytest.approx(2 / 6 * 0.4)
    # In one bin the mean confidence is (4 * 0.75 + 2 * 0.9) / 6 = 0.8, and 4 of 6 are right.
    assert calibration_error(reliability(differences_B, bins=1)) == pytest.approx(0.8 - 4 / 6)


def test_certainty_falls_into_the_last_bin_and_a_tie_into_the_first():
    assert reliability(torch.tensor([0.0, 100.0]), bins=10) == [Bin(1, 0.5, 0.5), Bin(1, 1.0, 1.0)]


def test_the_scale_of_rewards_is_of_both_responses():
    found = reward_statistics(torch.tensor([1.0, 3.0]), torch.tensor([0.0, 0.0]))
    assert found == {"mean": 1.0, "std": pytest.approx(math.sqrt(6 / 3))}


def test_every_row_comes_once_an_epoch_in_an_order_of_its_own():
    order = Order(rows=10, per_step=4, epochs=3, seed=1)
    assert (order.steps_per_epoch, order.steps) == (3, 9)
    epochs = [[row for step in range(first, first + 3) for row in order.of(step)] for first in (1, 4, 7)]
    assert [len(order.of(step)) for step in range(1, 10)] == [4, 4, 2] * 3
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3
    assert order.of(5) == Order(10, 4, 3, 1).of(5) != Order(10, 4, 3, 2).of(5)
    assert [order.epochs_done(step) for step in (0, 1, 2, 3, 4)] == [0.0, 0.4, 0.8, 1.0, 1.4]
    assert [step for step in range(1, 10) if order.measures(step, None)] == [3, 6, 9]
    assert [step for step in range(1, 10) if order.measures(step, 4)] == [4, 8, 9]
