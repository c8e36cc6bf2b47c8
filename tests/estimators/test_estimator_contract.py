"""What every estimator must keep. A new one adds a line to `ESTIMATORS`."""

from dataclasses import dataclass

import pytest
import torch
from builders import scored, widened

from tpg.estimators.base import Answers, Estimator
from tpg.estimators.boundaries import Coin, Delimiter, EveryTokens
from tpg.estimators.gae import GAE
from tpg.estimators.group import GRPO, GroupMean
from tpg.estimators.obl import OBL
from tpg.estimators.opo import OPO
from tpg.estimators.otb import OTB
from tpg.estimators.reinforce import Reinforce, ReinforceEMA
from tpg.estimators.reinforce_pp import ReinforcePP, ReinforcePPBaseline
from tpg.estimators.remax import ReMax
from tpg.estimators.rl_zvp import RLZVP
from tpg.estimators.rloo import RLOO
from tpg.estimators.segment import Segment
from tpg.estimators.trepo import TRePOInterpolate, TRePOInverseProbability
from tpg.trajectories import Trajectories

NAN, INF = float("nan"), float("inf")


@dataclass(frozen=True)
class Row:
    estimator: Estimator
    couples_groups: bool = False
    """Whether one group's weights may depend on another's rewards."""


ESTIMATORS = {
    "reinforce": Row(Reinforce(baseline=0.3)),
    "reinforce_ema": Row(ReinforceEMA()),
    "rloo": Row(RLOO()),
    "group_mean": Row(GroupMean()),
    "grpo": Row(GRPO()),
    "grpo_batch_std": Row(GRPO(std="batch"), couples_groups=True),
    "grpo_no_std": Row(GRPO(std="none")),
    "remax": Row(ReMax()),
    "reinforce_pp": Row(ReinforcePP(), couples_groups=True),
    "reinforce_pp_no_std": Row(ReinforcePP(std=False), couples_groups=True),
    "reinforce_pp_baseline": Row(ReinforcePPBaseline(), couples_groups=True),
    "opo": Row(OPO()),
    "opo_leave_one_out": Row(OPO(leave_one_out=True)),
    "obl": Row(OBL()),
    "obl_parameters": Row(OBL(norm="parameters")),
    "obl_leave_one_out": Row(OBL(leave_one_out=True)),
    "otb": Row(OTB()),
    "otb_leave_one_out": Row(OTB(leave_one_out=True)),
    "rl_zvp": Row(RLZVP()),
    "gae": Row(GAE(lam=0.9)),
    "segment_every_tokens": Row(Segment(boundaries=EveryTokens(tokens=2))),
    "segment_delimiter": Row(Segment(boundaries=Delimiter(token_ids=[2]))),
    "segment_coin": Row(Segment(boundaries=Coin(probability=0.5))),
    "trepo_interpolate": Row(TRePOInterpolate(positions=2)),
    "trepo_inverse_probability": Row(TRePOInverseProbability(positions=2)),
}

each_row = pytest.mark.parametrize("row", ESTIMATORS.values(), ids=ESTIMATORS)
each = pytest.mark.parametrize("estimator", [row.estimator for row in ESTIMATORS.values()], ids=ESTIMATORS)


def batch(rewards=(1.0, 0.5, 0.0, -1.0, 2.0, 0.25, NAN, 3.0), dtype=torch.float64, unscored=(6,)) -> Trajectories:
    """Three groups interleaved, one response unscored, one with a token in between that the policy did not choose."""
    trajectories = scored(
        list(rewards),
        rows=[4, 7, 4, 7, 4, 4, 7, 4],
        draws=[0, 0, 0, 0, 1, 0, 0, 1],
        unscored=unscored,
        lengths=[3, 1, 4, 2, 1, 2, 3, 4],
        dtype=dtype,
    )
    action_mask_BT = trajectories.response_mask_BT.clone()
    action_mask_BT[2, 1] = False
    return with_statistics(trajectories.replace(action_mask_BT=action_mask_BT))


def with_statistics(trajectories: Trajectories) -> Trajectories:
    """The per-token fields that an estimator may ask for."""
    shape = trajectories.response_ids_BT.shape
    steps_BT = torch.arange(shape[0] * shape[1], dtype=trajectories.rewards_B.dtype).reshape(shape)
    return trajectories.replace(
        values_BT=torch.sin(steps_BT),
        uniforms_BT=(steps_BT * 0.618 + 0.1) % 1,
        entropy_BT=1 + torch.cos(steps_BT),
        rollout_logprobs_BT=-1 - torch.sin(2 * steps_BT),
        sum_squared_probs_BT=0.5 + 0.4 * torch.cos(3 * steps_BT),
        score_norms_B=2 + torch.sin(steps_BT[:, 0]),
    )


def answers(estimator: Estimator, trajectories: Trajectories) -> Answers:
    """A function of each prompt and prefix, so that any selection of trajectories gets the same."""
    prompt_B = (trajectories.row_B + trajectories.draw_B).to(trajectories.rewards_B.dtype)
    greedy_B = prompt_B / 8
    asked = estimator.requests(trajectories).continuations
    values_K = None if asked is None else torch.sin(prompt_B[asked.parent_K] + 2 * asked.position_K)
    scored_B = torch.ones_like(trajectories.scored_B)
    return Answers(greedy_B, scored_B, values_K, state={"sum": 0.06, "weight": 0.2})


def weigh(estimator: Estimator, trajectories: Trajectories) -> torch.Tensor:
    return estimator.weights(trajectories, answers(estimator, trajectories))


@each
def test_the_battery_is_not_vacuous(estimator):
    weights_BT = weigh(estimator, batch())
    assert weights_BT.shape == (8, 4)
    assert len(weights_BT[weights_BT != 0].unique()) >= 5


@each
def test_padding_changes_nothing(estimator):
    weights_BT = weigh(estimator, widened(batch(), prompt=2, response=3))
    assert torch.equal(weights_BT[:, :4], weigh(estimator, batch()))
    assert torch.equal(weights_BT[:, 4:], torch.zeros(8, 3, dtype=torch.float64))


@each
def test_permuting_trajectories_permutes_weights(estimator):
    order = torch.tensor([5, 2, 7, 0, 6, 1, 4, 3])
    torch.testing.assert_close(
        weigh(estimator, batch().select(order)), weigh(estimator, batch())[order], rtol=1e-12, atol=1e-15
    )


@each_row
def test_groups_are_independent(row):
    alone = [0, 2, 5]
    changed = torch.tensor([1.0, -50.0, 0.0, 40.0, 7.0, 0.25, 1.0, 7.0], dtype=torch.float64)
    weights_BT = weigh(row.estimator, batch())[alone]
    others_BT = weigh(row.estimator, batch().replace(rewards_B=changed))[alone]
    without_BT = weigh(row.estimator, batch().select(torch.tensor(alone)))
    assert torch.allclose(others_BT, weights_BT, rtol=1e-12) is not row.couples_groups
    assert torch.allclose(without_BT, weights_BT, rtol=1e-12) is not row.couples_groups


@each
def test_weights_are_zero_where_the_policy_chose_nothing(estimator):
    trajectories = batch()
    weights_BT = weigh(estimator, trajectories)
    assert not weights_BT[~trajectories.action_mask_BT].any()
    assert weights_BT[2, 0] != 0
    assert weights_BT[2, 2] != 0


@each
def test_weights_carry_no_gradient(estimator):
    trajectories = batch()
    fields = {
        name: tensor.clone().requires_grad_()
        for name, tensor in vars(trajectories).items()
        if isinstance(tensor, torch.Tensor) and tensor.is_floating_point()
    }
    needing = trajectories.replace(**fields)
    asked = answers(estimator, needing)
    for answered in (asked.greedy_rewards_B, asked.continued_values_K):
        if answered is not None and not answered.requires_grad:
            answered.requires_grad_()
    weights_BT = estimator.weights(needing, asked)
    assert not weights_BT.requires_grad
    assert torch.equal(weights_BT, weigh(estimator, trajectories))


@each
@pytest.mark.parametrize("rubbish", [1e9, -1e9, INF, -INF])
def test_what_an_unscored_reward_holds_does_not_matter(estimator, rubbish):
    rewards = (1.0, 0.5, 0.0, -1.0, 2.0, 0.25, rubbish, 3.0)
    weights_BT = weigh(estimator, batch(rewards))
    assert torch.equal(weights_BT, weigh(estimator, batch()))
    assert not weights_BT[6].any()


@each
def test_unscored_members_are_as_good_as_absent(estimator):
    present = torch.tensor([0, 1, 2, 3, 4, 5, 7])
    torch.testing.assert_close(
        weigh(estimator, batch())[present], weigh(estimator, batch().select(present)), rtol=1e-12, atol=1e-15
    )


DEGENERATE = {
    "all rewards equal": batch([0.1] * 8, unscored=()),
    "nothing scored": batch([NAN] * 8, unscored=tuple(range(8))),
    "one group, one scored": batch(unscored=tuple(range(7))),
    "one response": with_statistics(scored([1.0])),
    "two responses of one token": with_statistics(scored([1.0, 0.0])),
    "rewards nearly equal": with_statistics(scored([1.0, 1.0 + 1e-15, 1.0])),
    "huge rewards": with_statistics(scored([1e30, -1e30, 0.0])),
    "no response": with_statistics(scored([1.0, 2.0])).select(torch.tensor([], dtype=torch.long)),
    "no action": with_statistics(scored([1.0, 0.0], action_mask_BT=torch.zeros(2, 1, dtype=torch.bool))),
}


@each
@pytest.mark.parametrize("name", DEGENERATE)
def test_finite_on_degenerate_input(estimator, name):
    trajectories = DEGENERATE[name]
    weights_BT = weigh(estimator, trajectories)
    assert weights_BT.shape == trajectories.response_ids_BT.shape
    assert weights_BT.isfinite().all()
    assert not weights_BT[~trajectories.scored_B].any()


@each
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_precision_is_kept(estimator, dtype):
    weights_BT = weigh(estimator, batch(dtype=dtype))
    assert weights_BT.dtype == dtype
    torch.testing.assert_close(weights_BT.double(), weigh(estimator, batch()), rtol=1e-5, atol=1e-6)
