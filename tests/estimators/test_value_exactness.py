"""Expected gradients of estimators that value prefixes, by complete enumeration, the lot included.

Weights are linear in the values of prefixes, and a prefix's continuations do not depend on what the response did after
it: so the mean over continuations is taken by answering with exact values.
"""

import pytest
import torch
from builders import record
from enumeration import LENGTH, PREFIXES, RESPONSES, cosine, random_logits, relative_error, token_logprobs
from torch import Tensor

from tpg.component import component
from tpg.estimators.base import Answers
from tpg.estimators.boundaries import Boundaries, Coin, Delimiter, EveryTokens
from tpg.estimators.gae import GAE
from tpg.estimators.segment import Segment
from tpg.estimators.trepo import TRePOInterpolate, TRePOInverseProbability

EXACT = 1e-10
REWARDS_R = torch.sin(1.7 * torch.arange(15, dtype=torch.float64)) + torch.arange(15) / 5
LOGITS_SV = random_logits(3)
FIXED_LENGTH_SV = LOGITS_SV.clone()
"""A policy that never ends a response before the limit."""
FIXED_LENGTH_SV[[i for i, prefix in enumerate(PREFIXES) if len(prefix) < LENGTH - 1], 0] = -1000.0


def prefix_values(logits_SV: Tensor) -> dict[tuple[int, ...], float]:
    """The expected reward after each prefix."""
    probability_R = token_logprobs(logits_SV).sum(-1).exp()
    after = {p: torch.tensor([r[: len(p)] == p for r in RESPONSES]) for p in PREFIXES}
    return {p: float((probability_R * REWARDS_R)[a].sum() / probability_R[a].sum()) for p, a in after.items()}


def true_gradient(logits_SV: Tensor) -> Tensor:
    logits_SV = logits_SV.clone().requires_grad_()
    value = (token_logprobs(logits_SV).sum(-1).exp() * REWARDS_R).sum()
    return torch.autograd.grad(value, logits_SV)[0]


def expected_gradient(estimator, logits_SV=LOGITS_SV, critic=None, own_share=0.0) -> Tensor:
    """The mean over all responses and all lots; `own_share` mixes a response's reward into the values it asks for."""
    values = prefix_values(logits_SV)
    critic = critic or values
    trajectories = record(
        [[1]] * len(RESPONSES),
        [list(response) for response in RESPONSES],
        rewards_B=REWARDS_R,
        scored_B=torch.ones(len(RESPONSES), dtype=torch.bool),
        values_BT=torch.tensor(
            [[critic[r[:t]] if t < len(r) else float("nan") for t in range(LENGTH)] for r in RESPONSES],
            dtype=torch.float64,
        ),
    )
    logits_SV = logits_SV.clone().requires_grad_()
    logprobs_RT = token_logprobs(logits_SV)
    probability_R = logprobs_RT.detach().sum(-1).exp()
    weights_BT = torch.zeros(len(RESPONSES), LENGTH, dtype=torch.float64)
    for chance, numbers in estimator.lots(LENGTH):
        drawn = trajectories.replace(uniforms_BT=numbers.expand(len(RESPONSES), LENGTH))
        asked = estimator.requests(drawn).continuations
        answers = Answers()
        if asked is not None:
            places = zip(asked.parent_K.tolist(), asked.position_K.tolist(), strict=True)
            exact = [values[RESPONSES[parent][:place]] for parent, place in places]
            exact_K = torch.tensor(exact, dtype=torch.float64)
            own_K = REWARDS_R[asked.parent_K]
            answers = Answers(continued_values_K=(1 - own_share) * exact_K + own_share * own_K)
        weights_BT += chance * estimator.weights(drawn, answers)
    return torch.autograd.grad((probability_R[:, None] * weights_BT * logprobs_RT).sum(), logits_SV)[0]


def bias(estimator, **options) -> float:
    """Relative error of the expected gradient."""
    truth = true_gradient(options.get("logits_SV", LOGITS_SV))
    return relative_error(expected_gradient(estimator, **options), truth)


def random_critic() -> dict[tuple[int, ...], float]:
    generator = torch.Generator().manual_seed(1)
    return dict(zip(PREFIXES, torch.randn(len(PREFIXES), generator=generator).tolist(), strict=True))


@component
class HalfWay(Boundaries):
    """The middle of the response, rounded up: after the first of two tokens, but after the second of three."""

    def at(self, trajectories):
        middle_B1 = (trajectories.lengths_B[:, None] + 1) // 2
        return trajectories.action_mask_BT & (torch.arange(trajectories.response_ids_BT.shape[1]) == middle_B1)


def test_gae_with_lambda_one_is_exact_for_any_critic():
    assert bias(GAE(), critic=random_critic()) < EXACT
    assert bias(GAE()) < EXACT


@pytest.mark.parametrize("lam", [0.0, 0.5, 0.95])
def test_gae_with_lambda_below_one_is_exact_for_an_exact_critic_only(lam):
    assert bias(GAE(lam=lam)) < EXACT
    assert bias(GAE(lam=lam), critic=random_critic()) > 0.01


def test_discounting_is_biased_and_without_it_less_is():
    estimator = GAE(lam=0.95, gamma=0.9)
    assert bias(estimator) > 0.01
    assert bias(estimator.without()["discounting"]) < EXACT
    assert bias(estimator.without()["lambda below 1"], critic=random_critic()) > 0.01


SEGMENTS = [
    *(Segment(boundaries=EveryTokens(tokens=tokens)) for tokens in (1, 2, 3)),
    Segment(boundaries=Delimiter(token_ids=[1])),
    Segment(boundaries=Delimiter(token_ids=[1, 2])),
    *(Segment(boundaries=Coin(probability=probability)) for probability in (0.3, 1.0)),
]


@pytest.mark.parametrize("estimator", SEGMENTS, ids=repr)
def test_segments_cut_by_what_came_before_are_exact(estimator):
    assert bias(estimator) < EXACT


def test_segments_cut_at_a_fraction_of_the_realised_length_are_biased():
    assert bias(Segment(boundaries=HalfWay())) > 0.05


@pytest.mark.parametrize("count", [1, 4])
def test_a_reward_within_its_own_values_would_shrink_the_gradient(count):
    estimator = Segment(boundaries=EveryTokens(tokens=LENGTH))
    shrunk = expected_gradient(estimator, own_share=1 / (count + 1))
    assert relative_error(shrunk, count / (count + 1) * true_gradient(LOGITS_SV)) < EXACT


@pytest.mark.parametrize("positions", [1, 2, 3])
@pytest.mark.parametrize("logits_SV", [LOGITS_SV, FIXED_LENGTH_SV], ids=["several lengths", "one length"])
def test_trepo_by_inverse_probability_is_exact(positions, logits_SV):
    assert bias(TRePOInverseProbability(positions=positions), logits_SV=logits_SV) < EXACT


@pytest.mark.parametrize("positions", [1, 2, 3])
def test_trepo_by_interpolation_at_one_length_scales_by_the_share_drawn(positions):
    mean = expected_gradient(TRePOInterpolate(positions=positions), logits_SV=FIXED_LENGTH_SV)
    assert relative_error(mean, positions / LENGTH * true_gradient(FIXED_LENGTH_SV)) < EXACT


@pytest.mark.parametrize("positions", [1, 2])
def test_trepo_by_interpolation_at_several_lengths_points_elsewhere(positions):
    estimator = TRePOInterpolate(positions=positions)
    assert bias(estimator) > 0.1
    assert cosine(expected_gradient(estimator), true_gradient(LOGITS_SV)) < 0.999
    assert bias(estimator.without()["interpolation"]) < EXACT
    assert bias(TRePOInterpolate(positions=LENGTH)) < EXACT
