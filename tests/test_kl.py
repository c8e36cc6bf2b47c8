import math

import pydantic
import pytest
import torch
from builders import record

from tpg.kl import KLInLoss, KLInReward, KLToGo, NoKL, SequenceKLInLoss
from tpg.numerics import k1, k2, k3

NAN = float("nan")
REWARDS = torch.tensor([1.0, 2.0], dtype=torch.float64)
WEIGHTS = torch.tensor([[1.0, 1.0, 0.0], [2.0, 2.0, 2.0]], dtype=torch.float64)
LOGRATIO = torch.tensor([[0.5, 0.25, NAN], [-1.0, 0.0, 0.4]], dtype=torch.float64)
MASK = torch.tensor([[True, True, False], [True, True, True]])

PLACEMENTS = [KLInReward, KLToGo, KLInLoss, SequenceKLInLoss]


def response(reference, *, hidden=0, **fields):
    """One response, of which the last `hidden` columns are padding."""
    tokens = [2] * (len(reference) - hidden)
    made = record([[2]], [tokens + [0] * hidden], ref_logprobs_BT=torch.tensor([reference]).double(), **fields)
    mask_BT = torch.tensor([[True] * len(tokens) + [False] * hidden])
    return made.replace(response_mask_BT=mask_BT, action_mask_BT=mask_BT)


def losses_and_slopes(kl, logprobs, trajectories, state=None):
    logprobs_BT = torch.tensor([logprobs], dtype=torch.float64, requires_grad=True)
    losses_BT = kl.token_losses(logprobs_BT, trajectories, state or {})
    losses_BT.sum().backward()
    return losses_BT[0].tolist(), logprobs_BT.grad[0].tolist()


@pytest.mark.parametrize(
    ("form", "at_three_tenths", "at_minus_one"), [(k1, 0.3, -1.0), (k2, 0.045, 0.5), (k3, 0.0408182, 0.7182818)]
)
def test_forms(form, at_three_tenths, at_minus_one):
    values = form(torch.tensor([0.3, -1.0, 0.0], dtype=torch.float64)).tolist()
    assert values == pytest.approx([at_three_tenths, at_minus_one, 0.0], abs=1e-7)


def test_k3_is_accurate_near_zero():
    assert k3(torch.tensor([1e-3])).item() == pytest.approx(4.998e-7, rel=2e-3)


def test_in_reward():
    kl = KLInReward(coefficient=0.1)
    assert kl.shaped_rewards(REWARDS, LOGRATIO, MASK, {}).tolist() == pytest.approx([0.925, 2.06])
    assert kl.shaped_weights(WEIGHTS, LOGRATIO, MASK, {}) is WEIGHTS
    assert kl.token_losses(LOGRATIO, response([0.0] * 3), {}) is None
    assert (kl.needs_reference, kl.in_loss) == (True, False)


def test_to_go_charges_each_token_with_itself_and_what_follows():
    kl = KLToGo(coefficient=0.1)
    logratio_BT = LOGRATIO.clone().requires_grad_()
    weights_BT = kl.shaped_weights(WEIGHTS, logratio_BT, MASK, {})
    assert weights_BT[0].tolist() == pytest.approx([0.925, 0.975, 0.0])
    assert weights_BT[1].tolist() == pytest.approx([2.06, 1.96, 1.96])
    assert not weights_BT.requires_grad
    assert kl.shaped_rewards(REWARDS, LOGRATIO, MASK, {}) is REWARDS
    assert kl.token_losses(LOGRATIO, response([0.0] * 3), {}) is None
    assert (kl.needs_reference, kl.in_loss) == (True, False)


def test_to_go_charges_nothing_to_tokens_that_the_policy_did_not_choose():
    mask_BT = torch.tensor([[True, False, True]])
    logratio_BT = torch.tensor([[0.5, 7.0, 0.2]])
    weights_BT = KLToGo(coefficient=1.0).shaped_weights(torch.zeros(1, 3), logratio_BT, mask_BT, {})
    assert weights_BT[0].tolist() == pytest.approx([-0.7, 0.0, -0.2])


# The log-ratios are 0.3, -1 and 0. The slope of k2 is the log-ratio x, of k3 it is 1 - e^-x.
@pytest.mark.parametrize(
    ("form", "losses", "slopes"),
    [
        ("k2", [0.0225, 0.25, 0.0], [0.15, -0.5, 0.0]),
        ("k3", [0.0204091, 0.3591409, 0.0], [0.1295909, -0.8591409, 0.0]),
        ("ratio_k3", [0.0204091, 0.3591409, 0.0], [0.15, -0.5, 0.0]),
    ],
)
def test_in_loss(form, losses, slopes):
    kl = KLInLoss(coefficient=0.5, form=form)
    found = losses_and_slopes(kl, [-0.7, -2.0, -1.0], response([-1.0, -1.0, -1.0]))
    assert found == (pytest.approx(losses, abs=1e-7), pytest.approx(slopes, abs=1e-7))
    assert kl.shaped_rewards(REWARDS, LOGRATIO, MASK, {}) is REWARDS
    assert kl.shaped_weights(WEIGHTS, LOGRATIO, MASK, {}) is WEIGHTS
    assert (kl.needs_reference, kl.in_loss) == (True, True)


def test_ratio_k3_weighs_by_the_ratio_to_the_policy_before_the_update():
    # ratios 2 and 1/2: losses 0.5 * ratio * k3, slopes 0.5 * ratio * log-ratio
    old_BT = torch.tensor([[-0.7, -2.0]]).double() - torch.tensor([[2.0, 0.5]]).double().log()
    trajectories = response([-1.0, -1.0], old_logprobs_BT=old_BT)
    losses, slopes = losses_and_slopes(KLInLoss(coefficient=0.5, form="ratio_k3"), [-0.7, -2.0], trajectories)
    assert losses == pytest.approx([0.0408182, 0.1795705], abs=1e-7)
    assert slopes == pytest.approx([0.3, -0.25], abs=1e-7)


def test_of_the_whole_response_in_the_loss():
    # The sum is -0.7, its k2 0.245; half of 0.5 * 0.245 on each of the two tokens, the slope of both 0.5 * -0.7.
    kl = SequenceKLInLoss(coefficient=0.5)
    losses, slopes = losses_and_slopes(kl, [-0.7, -2.0, NAN], response([-1.0, -1.0, -1.0], hidden=1))
    assert losses == pytest.approx([0.06125, 0.06125, 0.0])
    assert slopes == pytest.approx([-0.35, -0.35, 0.0])
    assert (kl.needs_reference, kl.in_loss) == (True, True)


@pytest.mark.parametrize(
    "kl", [KLInLoss(form=form) for form in ("k2", "k3", "ratio_k3")] + [SequenceKLInLoss()], ids=repr
)
@pytest.mark.parametrize("hidden", [1, 2])
def test_padding_costs_nothing_and_has_no_gradient(kl, hidden):
    losses, slopes = losses_and_slopes(
        kl, [-0.7, -2.0][: 2 - hidden] + [NAN] * hidden, response([-1.0] * 2, hidden=hidden)
    )
    assert losses[2 - hidden :] == slopes[2 - hidden :] == [0.0] * hidden
    assert all(math.isfinite(number) for number in losses + slopes)


def test_k3_is_the_default_form():
    assert KLInLoss() == KLInLoss(coefficient=0.04, form="k3", target=None, horizon=10_000)


def test_none():
    assert NoKL().shaped_rewards(REWARDS, LOGRATIO, MASK, {}) is REWARDS
    assert NoKL().shaped_weights(WEIGHTS, LOGRATIO, MASK, {}) is WEIGHTS
    assert NoKL().token_losses(LOGRATIO, response([0.0] * 3), {}) is None
    assert (NoKL().needs_reference, NoKL().in_loss) == (False, False)
    assert NoKL().initial_state() == NoKL().next_state({}, 3.0, 8) == NoKL().without() == {}


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_a_coefficient_without_a_target_stays(placement):
    kl = placement(coefficient=0.1)
    assert kl.initial_state() == kl.next_state({}, 100.0, 64) == {}
    assert kl.current({}) == 0.1


# 10% above the target is corrected by 10% of 50/100; what is further off than 20%, by 20% of it.
@pytest.mark.parametrize("placement", PLACEMENTS)
def test_a_coefficient_follows_its_target(placement):
    kl = placement(coefficient=0.1, target=2.0, horizon=100)
    state = kl.initial_state()
    assert state == {"coefficient": 0.1}
    for divergence, responses, expected in [
        (2.2, 50, 0.105),  # * 1.05
        (9.0, 50, 0.1155),  # * 1.1
        (1.9, 20, 0.114345),  # * 0.99
        (0.0, 50, 0.1029105),  # * 0.9
        (-0.1, 50, 0.09261945),  # * 0.9
        (2.0, 50, 0.09261945),
        (9.0, 700, 0.11114334),  # * 1.2: no more than one horizon at once
        (0.0, 700, 0.088914672),  # * 0.8: it never changes its sign
    ]:
        state = kl.next_state(state, divergence, responses)
        assert state == {"coefficient": pytest.approx(expected, rel=1e-12)}
        assert kl.current(state) == state["coefficient"]


def test_the_coefficient_in_force_is_the_one_of_the_state():
    state = {"coefficient": 0.2}
    assert KLInReward(target=1.0).shaped_rewards(REWARDS, LOGRATIO, MASK, state).tolist() == pytest.approx([0.85, 2.12])
    to_go_BT = KLToGo(target=1.0).shaped_weights(WEIGHTS, LOGRATIO, MASK, state)
    assert to_go_BT[0].tolist() == pytest.approx([0.85, 0.95, 0.0])
    losses, _ = losses_and_slopes(KLInLoss(form="k2", target=1.0), [-0.7], response([-1.0]), state)
    assert losses == pytest.approx([0.009])
    losses, _ = losses_and_slopes(SequenceKLInLoss(target=1.0), [-0.7], response([-1.0]), state)
    assert losses == pytest.approx([0.009])


def test_only_penalties_of_single_tokens_are_blamed_for_bias():
    kl = KLInLoss(coefficient=0.3, form="k2", target=5.0, horizon=7)
    assert kl.without() == {"KL placement": KLInReward(coefficient=0.3, target=5.0, horizon=7)}
    assert KLInReward().without() == KLToGo().without() == SequenceKLInLoss().without() == {}


def test_k1_in_the_loss_is_refused():
    with pytest.raises(pydantic.ValidationError, match="kl=k1_in_reward"):
        KLInLoss(form="k1")


@pytest.mark.parametrize("option", PLACEMENTS)
@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"coefficient": -0.1}, "coefficient"),
        ({"target": 0.0}, "target"),
        ({"horizon": 0}, "horizon"),
        ({"coefficient": 0.0, "target": 1.0}, "never moves"),
    ],
)
def test_impossible_numbers_are_refused(option, fields, named):
    with pytest.raises(pydantic.ValidationError, match=named):
        option(**fields)


def test_a_loss_without_the_reference_is_refused():
    with pytest.raises(AssertionError, match="reference"):
        KLInLoss().token_losses(torch.zeros(1, 1), record([[2]], [[2]]), {})
