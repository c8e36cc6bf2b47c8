"""A method on two responses to one prompt, every number by hand.

The responses have two tokens and one, log-probabilities -1, -2 and -0.5, rewards 1 and 0: RLOO's weights are 1 and -1.
To the reference the log-ratios are 0.2, -0.5 and 0.4: -0.3 and 0.4 nats a response.
"""

from typing import ClassVar

import pydantic
import pytest
import torch
from builders import record

from tpg.aggregation import MinibatchSize, SequenceSum
from tpg.component import component
from tpg.estimators.base import Answers
from tpg.estimators.reinforce import ReinforceEMA
from tpg.estimators.rloo import RLOO
from tpg.kl import KLInLoss, KLInReward, KLToGo, NoKL, SequenceKLInLoss
from tpg.method import Method, logratio
from tpg.mismatch import Masked, NoMismatch, Truncated
from tpg.numerics import TokenStatistics, token_statistics
from tpg.objectives.policy_gradient import PolicyGradient
from tpg.objectives.ppo_clip import PPOClip

LOGPROBS = [[-1.0, -2.0], [-0.5, 0.0]]
REFERENCE = [[-1.2, -1.5], [-0.9, 0.0]]
SIZE = MinibatchSize(responses=2, tokens=3, max_response_tokens=2)


def double(values):
    return torch.tensor(values, dtype=torch.float64)


def method(**parts):
    chosen = {
        "estimator": RLOO(),
        "objective": PolicyGradient(),
        "aggregation": SequenceSum(),
        "kl": NoKL(),
        "mismatch": NoMismatch(),
    }
    return Method(**(chosen | parts))


def sampled(rewards=(1.0, 0.0), unscored=(), **fields):
    values = {
        "row_B": torch.tensor([0, 0]),
        "rewards_B": double(rewards),
        "scored_B": torch.tensor([i not in unscored for i in range(2)]),
        "rollout_logprobs_BT": double(LOGPROBS),
        "ref_logprobs_BT": double(REFERENCE),
    }
    return record([[2], [2]], [[2, 3], [3]], **(values | fields))


def weigh(made, trajectories, state=None):
    return made.weigh(trajectories, Answers(), state or made.initial_state())


def loss_and_slopes(made, trajectories, state=None):
    """The loss and its gradient in the log-probabilities of the three tokens."""
    logprobs_BT = double(LOGPROBS).requires_grad_()
    state = state or made.initial_state()
    weighed = weigh(made, trajectories, state)
    loss = made.loss(TokenStatistics(logprobs_BT, None, None), weighed.trajectories, SIZE, state)
    loss.value.backward()
    slopes = logprobs_BT.grad
    assert slopes[1, 1] == 0
    return loss.value.item(), [*slopes[0].tolist(), slopes[1, 0].item()]


def test_the_plain_method():
    weighed = weigh(method(), sampled(ref_logprobs_BT=None))
    assert weighed.trajectories.weights_BT.tolist() == [[1.0, 1.0], [-1.0, 0.0]]
    assert weighed.kept_B.tolist() == weighed.needed_B.tolist() == [True, True]
    assert weighed.state == {"estimator": {}, "kl": {}}
    assert weighed.kl is None
    # (1 + 2 - 0.5) / 2, and minus half the weight
    assert loss_and_slopes(method(), sampled()) == (pytest.approx(1.25), pytest.approx([-0.5, -0.5, 0.5]))


@pytest.mark.parametrize("kl", [NoKL(), KLInReward(), KLToGo(), KLInLoss()], ids=repr)
def test_the_divergence_is_told_wherever_it_enters(kl):
    assert weigh(method(kl=kl), sampled()).kl == pytest.approx(0.05)


def test_kl_in_the_reward_moves_the_weights_and_leaves_the_rewards():
    made = method(kl=KLInReward(coefficient=0.1))
    assert made.rewards(sampled(), made.initial_state()).tolist() == pytest.approx([1.03, -0.04])
    weighed = weigh(made, sampled())
    assert weighed.trajectories.weights_BT.flatten().tolist() == pytest.approx([1.07, 1.07, -1.07, 0.0])
    assert weighed.trajectories.rewards_B.tolist() == [1.0, 0.0]
    value, slopes = loss_and_slopes(made, sampled())
    assert value == pytest.approx(1.3375)
    assert slopes == pytest.approx([-0.535, -0.535, 0.535])


def test_kl_to_go_moves_each_tokens_weight():
    # 1 + 0.1 * 0.3, 1 + 0.1 * 0.5, -1 - 0.1 * 0.4
    made = method(kl=KLToGo(coefficient=0.1))
    assert made.rewards(sampled(), made.initial_state()).tolist() == [1.0, 0.0]
    weights_BT = weigh(made, sampled()).trajectories.weights_BT
    assert weights_BT.flatten().tolist() == pytest.approx([1.03, 1.05, -1.04, 0.0])
    value, slopes = loss_and_slopes(made, sampled())
    assert value == pytest.approx(1.305)  # (1.03 + 2.1 - 0.52) / 2
    assert slopes == pytest.approx([-0.515, -0.525, 0.52])


def test_kl_in_the_loss_leaves_the_weights_and_adds_a_gradient():
    made = method(kl=KLInLoss(coefficient=0.1, form="k2"))
    assert weigh(made, sampled()).trajectories.weights_BT.tolist() == [[1.0, 1.0], [-1.0, 0.0]]
    value, slopes = loss_and_slopes(made, sampled())
    assert value == pytest.approx(1.26125)  # 0.1 * (0.02 + 0.125 + 0.08) / 2 more
    assert slopes == pytest.approx([-0.49, -0.525, 0.52])  # 0.1 * log-ratio / 2 more


def test_kl_of_the_whole_response_in_the_loss():
    value, slopes = loss_and_slopes(method(kl=SequenceKLInLoss(coefficient=0.1)), sampled())
    assert value == pytest.approx(1.25625)  # 0.1 * (0.045 + 0.08) / 2 more
    assert slopes == pytest.approx([-0.515, -0.515, 0.52])


@pytest.mark.parametrize("kl", [KLInReward(coefficient=0.1), KLToGo(coefficient=0.1)], ids=repr)
def test_the_log_ratio_is_the_trainers_where_there_is_one(kl):
    rollout_BT = double([[-7.0, -7.0], [-7.0, 0.0]])
    told_apart = sampled(rollout_logprobs_BT=rollout_BT, old_logprobs_BT=double(LOGPROBS))
    assert torch.equal(logratio(told_apart), logratio(sampled()))
    expected = weigh(method(kl=kl), sampled())
    found = weigh(method(kl=kl), told_apart)
    assert torch.equal(found.trajectories.weights_BT, expected.trajectories.weights_BT)
    assert found.kl == expected.kl


def test_the_entropy_bonus():
    made = method(entropy_coefficient=0.2)
    weighed = weigh(made, sampled())
    entropy_BT = double([[0.3, 0.6], [0.5, float("nan")]]).requires_grad_()
    statistics = TokenStatistics(double(LOGPROBS), entropy_BT, None)
    value = made.loss(statistics, weighed.trajectories, SIZE, weighed.state).value
    value.backward()
    assert value.item() == pytest.approx(1.11)  # 0.2 * 1.4 / 2 less
    assert entropy_BT.grad.flatten().tolist() == pytest.approx([-0.1, -0.1, -0.1, 0.0])


def test_the_entropy_bonus_flattens_the_policy():
    # p = [1/4, 3/4]: H = 0.5623351 and dH/dlogit = -p (log p + H) = [0.2059898, -0.2059898]; of each of three tokens
    # 0.2 / 2 of it. Equal rewards leave no other gradient.
    made = method(entropy_coefficient=0.2)
    logits_V = double([1.0, 3.0]).log().requires_grad_()
    weighed = weigh(made, sampled(rewards=(1.0, 1.0)))
    tokens_BT = torch.tensor([[0, 1], [1, 0]])
    statistics = token_statistics(logits_V.expand(2, 2, 2), tokens_BT, 1.0, distribution=True)
    made.loss(statistics, weighed.trajectories, SIZE, weighed.state).value.backward()
    assert logits_V.grad.tolist() == pytest.approx([-0.0617969, 0.0617969], abs=1e-7)


def test_the_entropy_bonus_needs_the_entropy():
    made = method(entropy_coefficient=0.2)
    with pytest.raises(AssertionError):
        loss_and_slopes(made, sampled())
    with pytest.raises(pydantic.ValidationError, match="entropy_coefficient"):
        method(entropy_coefficient=-0.1)


# pi_train / pi_rollout is 2, 1/2 and 3.
MISMATCHED = double([[2.0, 0.5], [3.0, 1.0]]).log()


@pytest.mark.parametrize(
    ("mismatch", "value", "slopes"),
    [
        (Truncated(level="token", cap=2.0), 1.0, [-1.0, -0.25, 1.0]),  # 2, 1/2, 2: (2 + 1 - 1) / 2
        (Truncated(level="sequence", cap=9.0), 0.75, [-0.5, -0.5, 1.5]),  # 1, 1, 3: (1 + 2 - 1.5) / 2
        (Masked(level="token", low=0.9, high=2.5), 1.0, [-1.0, 0.0, 0.0]),  # 2, 0, 0: 2 / 2
    ],
    ids=repr,
)
@pytest.mark.parametrize("old_BT", [double(LOGPROBS), None], ids=["old", "the policy has not moved"])
def test_a_mismatch_multiplies_the_losses(mismatch, value, slopes, old_BT):
    trajectories = sampled(old_logprobs_BT=old_BT, rollout_logprobs_BT=double(LOGPROBS) - MISMATCHED)
    found = loss_and_slopes(method(mismatch=mismatch), trajectories)
    assert found == (pytest.approx(value), pytest.approx(slopes))


def test_a_mismatch_multiplies_the_penalties_too():
    # 0.1 * (2 * 0.02 + 0.125 / 2 + 2 * 0.08) / 2 more than 1, the slopes by 0.05 * factor * log-ratio
    made = method(mismatch=Truncated(level="token", cap=2.0), kl=KLInLoss(coefficient=0.1, form="k2"))
    trajectories = sampled(old_logprobs_BT=double(LOGPROBS), rollout_logprobs_BT=double(LOGPROBS) - MISMATCHED)
    value, slopes = loss_and_slopes(made, trajectories)
    assert value == pytest.approx(1.013125)
    assert slopes == pytest.approx([-0.98, -0.2625, 1.04])


def test_what_the_objective_watches_is_passed_on():
    made = method(objective=PPOClip())
    weighed = weigh(made, sampled())
    loss = made.loss(TokenStatistics(double(LOGPROBS), None, None), weighed.trajectories, SIZE, weighed.state)
    assert set(loss.watched_BT) == {"clip_ratio/region_mean", "ratio"}


@component
class Paired(PolicyGradient):
    """An objective that needs a whole group where it needs one of it."""

    needs_groups: ClassVar[bool] = True


@pytest.mark.parametrize(
    ("parts", "needed"),
    [
        ({}, [False, False]),
        ({"kl": KLInReward(coefficient=0.0)}, [False, False]),
        ({"kl": KLInReward(coefficient=0.1)}, [True, True]),
        ({"kl": KLToGo(coefficient=0.1)}, [True, True]),
        ({"kl": KLInLoss(coefficient=0.1)}, [True, True]),
        ({"kl": SequenceKLInLoss(coefficient=0.1)}, [True, True]),
        ({"entropy_coefficient": 0.1}, [True, True]),
        ({"objective": Paired()}, [False, False]),
    ],
    ids=str,
)
def test_what_is_needed_of_equal_rewards(parts, needed):
    weighed = weigh(method(**parts), sampled(rewards=(1.0, 1.0)))
    assert weighed.kept_B.tolist() == [True, True]
    assert weighed.needed_B.tolist() == needed


@pytest.mark.parametrize(("objective", "needed"), [(PolicyGradient(), [True, True, False]), (Paired(), [True] * 3)])
def test_what_has_no_weight_is_needed_by_an_objective_of_groups(objective, needed):
    rewards_B, scored_B = double([1.0, 0.0, 0.5]), torch.ones(3, dtype=torch.bool)
    trajectories = record([[2]] * 3, [[2]] * 3, row_B=torch.zeros(3).long(), rewards_B=rewards_B, scored_B=scored_B)
    assert weigh(method(objective=objective), trajectories).needed_B.tolist() == needed


@pytest.mark.parametrize("kl", [NoKL(), KLInReward(), KLToGo(), KLInLoss()], ids=repr)
def test_what_is_not_kept_has_no_weight_and_is_not_needed(kl):
    # the second is unscored, which leaves the first alone in its group
    weighed = weigh(method(kl=kl, entropy_coefficient=0.1), sampled(rewards=(1.0, float("nan")), unscored=(1,)))
    assert weighed.trajectories.weights_BT.tolist() == [[0.0, 0.0], [0.0, 0.0]]
    assert weighed.kept_B.tolist() == weighed.needed_B.tolist() == [False, False]


def test_state_is_carried_by_each_part():
    # The average sees the shaped rewards 1.03 and -0.04; the divergence of 0.05 is 10% above its target.
    kl = KLInReward(coefficient=0.1, target=0.05 / 1.1, horizon=4)
    made = method(estimator=ReinforceEMA(decay=0.9), kl=kl)
    state = made.initial_state()
    assert state == {"estimator": {"sum": 0.0, "weight": 0.0}, "kl": {"coefficient": 0.1}}
    weighed = made.weigh(sampled(), Answers(state=state["estimator"]), state)
    assert weighed.state["estimator"] == pytest.approx({"sum": 0.0495, "weight": 0.1})
    assert weighed.state["kl"] == pytest.approx({"coefficient": 0.105})  # 0.1 * (1 + 0.1 * 2 / 4)
    assert state["kl"] == {"coefficient": 0.1}
    again = made.weigh(sampled(), Answers(state=weighed.state["estimator"]), weighed.state)
    assert again.state["kl"] == pytest.approx({"coefficient": 0.11025})


def test_the_coefficient_in_force_is_the_one_of_the_state():
    state = {"estimator": {}, "kl": {"coefficient": 0.2}}
    in_reward = method(kl=KLInReward(coefficient=0.1, target=1.0))
    assert in_reward.rewards(sampled(), state).tolist() == pytest.approx([1.06, -0.08])
    in_loss = method(kl=KLInLoss(coefficient=0.1, form="k2", target=1.0))
    assert loss_and_slopes(in_loss, sampled(), state)[0] == pytest.approx(1.2725)
