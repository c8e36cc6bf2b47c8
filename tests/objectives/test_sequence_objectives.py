"""Objectives with the ratio of a whole response, computed by hand."""

import math

import pydantic
import pytest
import torch
from builders import record

from tpg.objectives.gspo import GSPO, LUSPO
from tpg.objectives.ppo_clip import PPOClip
from tpg.objectives.sequence_clip import SequenceClip
from tpg.objectives.vespo import VESPO

LOG_RATIOS = [0.1, -0.2, 0.3, 0.05]
WIDE = {"clip_low": 1.0, "clip_high": 1e9}


def losses(objective, log_ratios, weights):
    """Token losses, their slopes in the log-probabilities and what is watched, of one response."""
    old_BT = torch.tensor([[-1.0 - t / 7 for t in range(len(log_ratios))]], dtype=torch.float64)
    trajectories = record([[2]], [[3] * len(log_ratios)]).replace(
        weights_BT=torch.tensor([weights], dtype=torch.float64), old_logprobs_BT=old_BT
    )
    logprobs_BT = (old_BT + torch.tensor([log_ratios], dtype=torch.float64)).requires_grad_()
    result = objective(logprobs_BT, trajectories)
    result.losses_BT.sum().backward()
    watched = {name: watched_BT.tolist()[0] for name, watched_BT in result.watched_BT.items()}
    return result.losses_BT.tolist()[0], logprobs_BT.grad.tolist()[0], watched


# Objective, the ratio that all tokens share, the slope of the surrogate at each token when A = 1.
CASES = [
    (SequenceClip(**WIDE), 1.284025, 1.284025),
    (SequenceClip(clip_high=0.3), 1.284025, 1.284025),
    (SequenceClip(clip_high=0.28), 1.284025, 0.0),
    (LUSPO(**WIDE), 1.064494, 1.064494),
    (LUSPO(clip_high=0.07), 1.064494, 1.064494),
    (LUSPO(), 1.064494, 0.0),
    (GSPO(**WIDE), 1.064494, 0.2661235),
    (GSPO(clip_high=0.07), 1.064494, 0.2661235),
    (GSPO(), 1.064494, 0.0),
]


@pytest.mark.parametrize(("objective", "ratio", "slope"), CASES, ids=repr)
def test_tokens_share_the_ratio_of_their_response(objective, ratio, slope):
    _, slopes, watched = losses(objective, LOG_RATIOS, [1.0] * 4)
    assert watched["ratio"] == pytest.approx([ratio] * 4, abs=1e-6)
    assert slopes == pytest.approx([-slope] * 4, abs=1e-6)
    assert watched["clip_ratio/region_mean"] == [float(slope == 0)] * 4


def test_token_losses():
    assert losses(SequenceClip(), LOG_RATIOS, [1.0] * 4)[0] == pytest.approx([-1.2] * 4)
    assert losses(SequenceClip(), LOG_RATIOS, [-1.0] * 4)[0] == pytest.approx([1.284025] * 4, abs=1e-6)
    assert losses(LUSPO(), LOG_RATIOS, [2.0] * 4)[0] == pytest.approx([-2.0008] * 4)
    assert losses(GSPO(), LOG_RATIOS, [2.0] * 4)[0] == pytest.approx([-0.5002] * 4)
    assert losses(GSPO(), [-r for r in LOG_RATIOS], [-2.0] * 4)[0] == pytest.approx([0.49985] * 4)


def test_the_published_gspo_is_its_token_form_summed():
    """`-s A` of one response with `s = exp(mean log-ratio)`: value `-s A`, slope `-s A / |o|` at every token."""
    values, slopes, _ = losses(GSPO(**WIDE), LOG_RATIOS, [-1.5] * 4)
    mean = torch.tensor(LOG_RATIOS, dtype=torch.float64).requires_grad_()
    whole = -mean.mean().exp() * -1.5
    whole.backward()
    assert sum(values) == pytest.approx(whole.item())
    assert slopes == pytest.approx(mean.grad.tolist())


def test_a_response_ratio_counts_once():
    _, slopes, _ = losses(SequenceClip(**WIDE), LOG_RATIOS, [-1.5] * 4)
    log_ratios = torch.tensor(LOG_RATIOS, dtype=torch.float64).requires_grad_()
    (-log_ratios.sum().exp() * -1.5).backward()
    assert slopes == pytest.approx(log_ratios.grad.tolist())


@pytest.mark.parametrize(
    ("objective", "factor"), [(SequenceClip(**WIDE), math.exp(0.1)), (LUSPO(**WIDE), math.exp(0.05))]
)
def test_weights_may_differ_from_token_to_token(objective, factor):
    _, slopes, _ = losses(objective, [0.3, -0.2], [2.0, -1.0])
    assert slopes == pytest.approx([-2 * factor, factor])


def test_the_clip_goes_by_the_sign_of_each_tokens_weight():
    _, slopes, watched = losses(SequenceClip(), [0.3, 0.2], [2.0, -1.0])
    assert slopes == pytest.approx([0.0, math.exp(0.5)])
    assert watched["clip_ratio/region_mean"] == [1.0, 0.0]


# Log-ratios, weight, factor: e^lambda w^k e^(-lambda w), w the product of the ratios.
VESPO_CASES = [
    ([math.log(0.5), 0.0], 1.0, 0.25 * math.exp(1.5)),
    ([math.log(4.0), math.log(0.5)], 1.0, 4 * math.exp(-3.0)),
    ([math.log(0.5), 0.0], -1.0, 0.125 * math.exp(1.0)),
    ([math.log(4.0), math.log(0.5)], -1.0, 8 * math.exp(-2.0)),
    ([math.log(2.0), math.log(0.5)], 1.0, 1.0),
]


@pytest.mark.parametrize(("log_ratios", "weight", "factor"), VESPO_CASES)
def test_vespo(log_ratios, weight, factor):
    values, slopes, watched = losses(VESPO(), log_ratios, [weight] * 2)
    logprobs = [-1.0 + log_ratios[0], -1.0 - 1 / 7 + log_ratios[1]]
    assert slopes == pytest.approx([-factor * weight] * 2)
    assert values == pytest.approx([-factor * weight * logprob for logprob in logprobs])
    assert watched["ratio"] == pytest.approx([math.exp(sum(log_ratios))] * 2)


def test_vespo_takes_the_powers_it_is_given():
    objective = VESPO(k_positive=1.0, lambda_positive=0.0, k_negative=0.0, lambda_negative=1.0)
    assert losses(objective, [0.5], [1.0])[1] == pytest.approx([-math.exp(0.5)])
    assert losses(objective, [math.log(2.0)], [-1.0])[1] == pytest.approx([math.exp(-1.0)])


@pytest.mark.parametrize("cls", [SequenceClip, GSPO, LUSPO])
@pytest.mark.parametrize("fields", [{"clip_low": -0.1}, {"clip_low": 1.1}, {"clip_high": -0.1}, {"dual_clip": 3.0}])
def test_options_are_checked(cls, fields):
    with pytest.raises(pydantic.ValidationError, match=next(iter(fields))):
        cls(**fields)


def test_ingredients_that_bias():
    exact = SequenceClip(**WIDE)
    assert SequenceClip().without() == {"clipping": exact}
    assert exact.without() == {}
    assert PPOClip(dual_clip=3.0).without() == {"clipping": PPOClip(**WIDE)}
    assert PPOClip(**WIDE).without() == {"token-level ratio": exact}
    assert LUSPO().without() == {"clipping": LUSPO(**WIDE)}
    assert LUSPO(**WIDE).without() == {"length-normalised ratio": exact}
    assert GSPO().without() == {"length normalisation": LUSPO(), "clipping": GSPO(**WIDE)}
    assert GSPO(**WIDE).without() == {"length normalisation": LUSPO(**WIDE)}
    assert VESPO().without() == {"reshaped importance weights": exact}
