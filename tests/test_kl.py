import pydantic
import pytest
import torch

from tpg.kl import KLInLoss, KLInReward, NoKL
from tpg.numerics import k1, k2, k3

NAN = float("nan")
REWARDS = torch.tensor([1.0, 2.0], dtype=torch.float64)
LOGRATIO = torch.tensor([[0.5, 0.25, NAN], [-1.0, 0.0, 0.4]], dtype=torch.float64)
MASK = torch.tensor([[True, True, False], [True, True, True]])


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
    assert kl.shaped_rewards(REWARDS, LOGRATIO, MASK).tolist() == pytest.approx([0.925, 2.06])
    assert kl.token_losses(LOGRATIO) is None
    assert (kl.needs_reference, kl.in_loss) == (True, False)


@pytest.mark.parametrize(
    ("form", "losses", "slopes"),
    [
        ("k2", [0.0225, 0.25, 0.0], [0.15, -0.5, 0.0]),
        ("k3", [0.0204091, 0.3591409, 0.0], [0.1295909, -0.8591409, 0.0]),
    ],
)
def test_in_loss(form, losses, slopes):
    logratio_BT = torch.tensor([[0.3, -1.0, 0.0]], dtype=torch.float64, requires_grad=True)
    kl = KLInLoss(coefficient=0.5, form=form)
    losses_BT = kl.token_losses(logratio_BT)
    losses_BT.sum().backward()
    assert losses_BT.tolist() == [pytest.approx(losses, abs=1e-7)]
    assert logratio_BT.grad.tolist() == [pytest.approx(slopes, abs=1e-7)]
    assert kl.shaped_rewards(REWARDS, LOGRATIO, MASK) is REWARDS
    assert (kl.needs_reference, kl.in_loss) == (True, True)


def test_k3_is_the_default_form():
    assert KLInLoss() == KLInLoss(coefficient=0.04, form="k3")


def test_none():
    assert NoKL().shaped_rewards(REWARDS, LOGRATIO, MASK) is REWARDS
    assert NoKL().token_losses(LOGRATIO) is None
    assert (NoKL().needs_reference, NoKL().in_loss) == (False, False)


def test_k1_in_the_loss_is_refused():
    with pytest.raises(pydantic.ValidationError, match="kl=k1_in_reward"):
        KLInLoss(form="k1")


@pytest.mark.parametrize("option", [KLInReward, KLInLoss])
def test_negative_coefficients_are_refused(option):
    with pytest.raises(pydantic.ValidationError, match="coefficient"):
        option(coefficient=-0.1)
