"""Which placements of the divergence, and which corrections of a mismatch, have the true gradient: by enumeration.

The policy is a table over three tokens and up to three steps, the reference and the rollout's policy are others.
"""

import pytest
import torch
from enumeration import Problem, cosine, random_logits, relative_error, token_logprobs

from tpg.aggregation import SequenceSum
from tpg.component import component
from tpg.estimators.group import GroupMean
from tpg.estimators.reinforce import Reinforce
from tpg.estimators.rloo import RLOO
from tpg.kl import KL, KLInLoss, KLInReward, KLToGo, LossPenalty, NoKL, Penalty, SequenceKLInLoss
from tpg.method import Method
from tpg.mismatch import Masked, Mismatch, NoMismatch, Truncated
from tpg.numerics import k2, k3, masked_sum
from tpg.objectives.policy_gradient import PolicyGradient

LOGITS = random_logits(1)
REFERENCE = LOGITS + random_logits(101, scale=0.5)
ROLLOUT = LOGITS + random_logits(201, scale=0.5)
REWARDS = torch.sin(1.7 * torch.arange(15, dtype=torch.float64))

PENALISED = Problem(LOGITS, REFERENCE, REWARDS, beta=0.3)
ONLY_KL = Problem(LOGITS, REFERENCE, 0 * REWARDS, beta=0.3)
ONLY_REWARD = Problem(LOGITS, REFERENCE, REWARDS, beta=0.0)


def method(kl: KL | None = None, mismatch: Mismatch | None = None, estimator=None) -> Method:
    return Method(
        estimator=estimator or Reinforce(),
        objective=PolicyGradient(),
        aggregation=SequenceSum(),
        kl=kl or NoKL(),
        mismatch=mismatch or NoMismatch(),
    )


def test_the_enumeration_is_complete():
    log_R = token_logprobs(LOGITS).sum(-1)
    assert log_R.exp().sum().item() == pytest.approx(1, rel=1e-14)
    divergence = float((log_R.exp() * (log_R - token_logprobs(REFERENCE).sum(-1))).sum())
    assert 0.05 < divergence < 1


def test_the_true_gradient_is_the_slope_of_the_objective():
    direction = random_logits(7)

    def value(step):
        log_R = token_logprobs(LOGITS + step * direction).sum(-1)
        return float((log_R.exp() * (REWARDS - 0.3 * (log_R - token_logprobs(REFERENCE).sum(-1)))).sum())

    slope = (value(1e-5) - value(-1e-5)) / 2e-5
    assert float((PENALISED.true_gradient() * direction).sum()) == pytest.approx(slope, rel=1e-7)


@pytest.mark.parametrize(("estimator", "group"), [(Reinforce(baseline=0.4), 1), (RLOO(), 2)], ids=repr)
@pytest.mark.parametrize("placement", [KLInReward, KLToGo, SequenceKLInLoss])
def test_exact_placements(placement, estimator, group):
    estimate = PENALISED.expected_gradient(method(placement(coefficient=0.3), estimator=estimator), group)
    assert relative_error(estimate, PENALISED.true_gradient()) < 1e-10


@pytest.mark.parametrize("placement", [KLInReward, KLToGo, SequenceKLInLoss])
def test_exact_placements_stay_exact_where_the_coefficient_moves(placement):
    estimate = PENALISED.expected_gradient(method(placement(coefficient=0.3, target=1.0)))
    assert relative_error(estimate, PENALISED.true_gradient()) < 1e-10


@pytest.mark.parametrize(("placement", "scale"), [(KLInReward, 0.5), (KLToGo, 1.0), (SequenceKLInLoss, 1.0)])
def test_an_estimator_that_scales_the_rewards_scales_the_divergence_among_them_only(placement, scale):
    estimate = PENALISED.expected_gradient(method(placement(coefficient=0.3), estimator=GroupMean()), group=2)
    expected = 0.5 * ONLY_REWARD.true_gradient() + scale * ONLY_KL.true_gradient()
    assert relative_error(estimate, expected) < 1e-10


def test_charging_only_what_follows_is_less_noisy():
    to_go, in_reward = (PENALISED.variance(method(kl(coefficient=0.3))) for kl in (KLToGo, KLInReward))
    assert to_go < 0.95 * in_reward


@pytest.mark.parametrize(("form", "error"), [("k2", 0.107), ("ratio_k3", 0.107), ("k3", 0.155)])
def test_penalties_of_single_tokens_are_near_but_not_exact(form, error):
    estimate = ONLY_KL.expected_gradient(method(KLInLoss(coefficient=0.3, form=form)))
    assert relative_error(estimate, ONLY_KL.true_gradient()) == pytest.approx(error, abs=1e-3)
    assert cosine(estimate, ONLY_KL.true_gradient()) > 0.99


def test_k2_and_ratio_k3_of_a_token_have_one_gradient_while_the_policy_has_not_moved():
    of_k2, of_ratio_k3 = (ONLY_KL.expected_gradient(method(KLInLoss(form=form))) for form in ("k2", "ratio_k3"))
    torch.testing.assert_close(of_k2, of_ratio_k3, rtol=0, atol=1e-14)


@pytest.mark.parametrize("form", ["k2", "ratio_k3", "k3"])
def test_what_is_blamed_for_their_bias_takes_it_away(form):
    kl = KLInLoss(coefficient=0.3, form=form).without()["KL placement"]
    assert relative_error(PENALISED.expected_gradient(method(kl)), PENALISED.true_gradient()) < 1e-10


@component
class K1InLoss(LossPenalty):
    """The log-ratio itself as a loss, which is refused as an option."""

    def penalties(self, logratio_BT, logprobs_BT, trajectories):
        return logratio_BT


def test_k1_in_the_loss_has_no_gradient_in_expectation():
    # By hand: sum_R p(R) grad log p(R) = grad sum_R p(R) = grad 1.
    logits_SV = LOGITS.clone().requires_grad_()
    log_R = token_logprobs(logits_SV).sum(-1)
    (log_R.detach().exp() * (log_R - token_logprobs(REFERENCE).sum(-1))).sum().backward()
    assert float(logits_SV.grad.norm()) < 1e-14
    estimate = ONLY_KL.expected_gradient(method(K1InLoss(coefficient=0.3)))
    assert float(estimate.norm()) < 1e-14 < 0.01 < float(ONLY_KL.true_gradient().norm())


@component
class K2InReward(Penalty):
    """k2 of every token in the reward, for which there is no option."""

    def shaped_rewards(self, rewards_B, logratio_BT, mask_BT, state):
        return rewards_B - self.current(state) * masked_sum(k2(logratio_BT), mask_BT)


@component
class K3InReward(Penalty):
    """k3 of every token in the reward, for which there is no option."""

    def shaped_rewards(self, rewards_B, logratio_BT, mask_BT, state):
        return rewards_B - self.current(state) * masked_sum(k3(logratio_BT), mask_BT)


@pytest.mark.parametrize("kl", [K2InReward(coefficient=0.3), K3InReward(coefficient=0.3)], ids=repr)
def test_k2_and_k3_in_the_reward_point_elsewhere(kl):
    assert cosine(ONLY_KL.expected_gradient(method(kl)), ONLY_KL.true_gradient()) < 0.8


@pytest.mark.parametrize(("estimator", "group"), [(Reinforce(baseline=0.4), 1), (RLOO(), 2)], ids=repr)
@pytest.mark.parametrize(
    "kl", [KLInReward(coefficient=0.3), KLToGo(coefficient=0.3), SequenceKLInLoss(coefficient=0.3)]
)
@pytest.mark.parametrize("mismatch", [Truncated(cap=1e9), Masked(low=0.0, high=1e9)], ids=repr)
def test_weights_of_whole_responses_are_exact_off_policy(mismatch, kl, estimator, group):
    estimate = PENALISED.expected_gradient(method(kl, mismatch, estimator), group, ROLLOUT)
    assert relative_error(estimate, PENALISED.true_gradient()) < 1e-10


@pytest.mark.parametrize(
    ("mismatch", "error"),
    [
        (NoMismatch(), 0.467),
        (Truncated(level="token", cap=1e9), 0.208),
        (Masked(level="token", low=0.0, high=1e9), 0.208),
        (Truncated(level="sequence", cap=1.2), 0.397),
        (Masked(level="sequence", low=0.5, high=2.0), 0.476),
    ],
    ids=repr,
)
def test_other_weights_are_biased_off_policy(mismatch, error):
    estimate = ONLY_REWARD.expected_gradient(method(mismatch=mismatch), rollout_SV=ROLLOUT)
    assert relative_error(estimate, ONLY_REWARD.true_gradient()) == pytest.approx(error, abs=1e-3)


@pytest.mark.parametrize("mismatch", [Truncated(level="token", cap=1.2), Masked(level="token")], ids=repr)
def test_both_ingredients_that_are_blamed_must_go(mismatch):
    for part in mismatch.without().values():
        estimate = ONLY_REWARD.expected_gradient(method(mismatch=part), rollout_SV=ROLLOUT)
        assert relative_error(estimate, ONLY_REWARD.true_gradient()) > 0.05
    (unbounded,) = mismatch.without()["token-level importance weights"].without().values()
    estimate = ONLY_REWARD.expected_gradient(method(mismatch=unbounded), rollout_SV=ROLLOUT)
    assert relative_error(estimate, ONLY_REWARD.true_gradient()) < 1e-10


@pytest.mark.parametrize("mismatch", [Truncated(), Truncated(level="token"), Masked(), Masked(level="token")], ids=repr)
def test_on_policy_every_correction_is_exact(mismatch):
    estimate = ONLY_REWARD.expected_gradient(method(mismatch=mismatch))
    assert relative_error(estimate, ONLY_REWARD.true_gradient()) < 1e-10
