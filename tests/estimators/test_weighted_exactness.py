"""Expected gradients where responses end after one, two or three tokens, by complete enumeration in float64."""

import itertools

import pytest
import torch
from builders import record
from enumeration import PREFIXES, RESPONSES, cosine, random_logits, relative_error, token_logprobs
from torch import Tensor

from tpg.estimators.base import Answers
from tpg.estimators.group import GRPO, GroupMean
from tpg.estimators.obl import OBL
from tpg.estimators.opo import OPO
from tpg.estimators.otb import OTB
from tpg.estimators.reinforce import Reinforce
from tpg.estimators.reinforce_pp import ReinforcePP, ReinforcePPBaseline
from tpg.estimators.rl_zvp import RLZVP
from tpg.estimators.rloo import RLOO
from tpg.estimators.weighted import cumulative_score_norms
from tpg.trajectories import Trajectories

LOGITS_SV = random_logits(seed=5)
REWARDS_R = 1 + torch.sin(1.7 * torch.arange(15, dtype=torch.float64)) + torch.arange(15) / 9
BINARY_R = REWARDS_R.gt(REWARDS_R.median()).double()
PROBABILITY_R = token_logprobs(LOGITS_SV).sum(-1).exp()
SCORES_RTSV = torch.autograd.functional.jacobian(token_logprobs, LOGITS_SV)
"""The gradient of every token's log-probability in all the logits; 0 past the end."""


def every_response(rewards_R: Tensor) -> Trajectories:
    """All fifteen, with what an estimator may ask for."""
    logp_SV = LOGITS_SV.log_softmax(-1)
    rows_RT = torch.tensor([[PREFIXES.index(r[: min(t, len(r) - 1)]) for t in range(3)] for r in RESPONSES])
    return record(
        [[1]] * len(RESPONSES),
        [list(response) for response in RESPONSES],
        old_logprobs_BT=token_logprobs(LOGITS_SV),
        sum_squared_probs_BT=logp_SV.exp().square().sum(-1)[rows_RT],
        entropy_BT=-(logp_SV.exp() * logp_SV).sum(-1)[rows_RT],
        score_norms_B=SCORES_RTSV.sum(1).square().sum((-1, -2)),
        rewards_B=rewards_R,
        scored_B=torch.ones(len(RESPONSES), dtype=torch.bool),
    )


def true_gradient(rewards_R: Tensor = REWARDS_R) -> Tensor:
    """Of the expected reward, by differentiating the sum itself."""
    logits_SV = LOGITS_SV.clone().requires_grad_()
    expected_reward = (token_logprobs(logits_SV).sum(-1).exp() * rewards_R).sum()
    return torch.autograd.grad(expected_reward, logits_SV)[0]


def expected_gradient(estimator, group: int, rewards_R: Tensor = REWARDS_R, apart: bool = False) -> Tensor:
    """The mean over all groups of `group` responses: each a prompt of one batch, or each a batch of its own."""
    drawn_NG = torch.tensor(list(itertools.product(range(len(RESPONSES)), repeat=group)))
    count = len(drawn_NG)
    groups = every_response(rewards_R).select(drawn_NG.flatten())
    groups = groups.replace(row_B=torch.arange(count).repeat_interleave(group))
    batches = torch.arange(count * group).split(group if apart else count * group)
    weights_BT = torch.cat([estimator.weights(groups.select(batch), Answers()) for batch in batches])
    probability_B = PROBABILITY_R[drawn_NG].prod(-1).repeat_interleave(group) / group
    return torch.einsum("b,bt,btsv->sv", probability_B, weights_BT, SCORES_RTSV[drawn_NG.flatten()])


def test_the_norm_in_the_logits_is_the_true_one_of_a_table():
    # 15 responses of one, two or three tokens, no prefix of which is met twice.
    norms_BT = cumulative_score_norms(every_response(REWARDS_R))
    true_BT = torch.stack([SCORES_RTSV[:, : t + 1].sum(1).square().sum((-1, -2)) for t in range(3)], dim=-1)
    torch.testing.assert_close(norms_BT, true_BT, rtol=1e-12, atol=0)
    assert len(true_BT[:, -1].unique()) > 10


WEIGHTED = [OPO(), OBL(), OBL(norm="parameters"), OTB()]


@pytest.mark.parametrize("group", [2, 3])
@pytest.mark.parametrize("estimator", [estimator.without()["self-inclusion"] for estimator in WEIGHTED], ids=repr)
def test_exact_with_a_baseline_of_the_others(estimator, group):
    assert estimator.leave_one_out
    assert relative_error(expected_gradient(estimator, group), true_gradient()) < 1e-10


@pytest.mark.parametrize("group", [2, 3])
@pytest.mark.parametrize("estimator", WEIGHTED, ids=repr)
def test_the_response_itself_in_its_weighted_baseline_bends_the_direction(estimator, group):
    assert 0.5 < cosine(expected_gradient(estimator, group), true_gradient()) < 0.9995


def test_the_two_norms_agree_on_a_table():
    torch.testing.assert_close(
        expected_gradient(OBL(), 2), expected_gradient(OBL(norm="parameters"), 2), rtol=1e-10, atol=1e-15
    )


@pytest.mark.parametrize(
    ("estimator", "batch", "scale"),
    [(ReinforcePP(std=False), 2, 1 / 2), (ReinforcePP(std=False), 3, 2 / 3), (GroupMean(), 2, 1 / 2)],
    ids=repr,
)
def test_less_the_batch_mean_is_exact_but_for_the_scale(estimator, batch, scale):
    mean = expected_gradient(estimator, batch, apart=True)
    assert relative_error(mean, scale * true_gradient()) < 1e-10


@pytest.mark.parametrize("estimator", [ReinforcePP(), ReinforcePPBaseline()], ids=repr)
def test_the_standard_deviation_of_the_batch_bends_the_direction(estimator):
    assert 0.5 < cosine(expected_gradient(estimator, 2, apart=True), true_gradient()) < 0.9995


def test_the_push_by_entropy_is_no_gradient():
    # Where every reward is above 0 a token's push depends on what came before it alone, so that its mean vanishes.
    # Where every reward is 0 it depends on the whole response, through the largest entropy.
    same_R = torch.ones(len(RESPONSES), dtype=torch.float64)
    assert float(expected_gradient(RLZVP(), 2, same_R).norm()) < 1e-15
    assert float(expected_gradient(RLZVP(), 2, 0 * same_R).norm()) > 1e-3
    pushed, truth = expected_gradient(RLZVP(std="none"), 2, BINARY_R), true_gradient(BINARY_R)
    assert cosine(pushed, truth) < 0.9995
    assert cosine(expected_gradient(GRPO(std="none"), 2, BINARY_R), truth) == pytest.approx(1)


@pytest.mark.parametrize(
    ("estimator", "blamed", "left"),
    [
        (ReinforcePP(), ["batch std normalisation", "self-inclusion"], Reinforce()),
        (ReinforcePPBaseline(), ["batch std normalisation", "self-inclusion"], RLOO()),
        (RLZVP(), ["push in zero-variance groups", "std normalisation", "self-inclusion"], RLOO()),
        (OTB(), ["self-inclusion"], OTB(leave_one_out=True)),
    ],
    ids=repr,
)
def test_less_all_that_is_blamed_an_estimator_is_exact(estimator, blamed, left):
    names = []
    while estimator.without():
        name, estimator = next(iter(estimator.without().items()))
        names.append(name)
    assert (names, estimator) == (blamed, left)
    assert relative_error(expected_gradient(estimator, 2), true_gradient()) < 1e-10
