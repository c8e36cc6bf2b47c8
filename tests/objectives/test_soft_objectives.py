"""CISPO and SAPO, computed by hand."""

import pydantic
import pytest
import torch
from builders import record

from tpg.objectives.cispo import CISPO
from tpg.objectives.ppo_clip import PPOClip
from tpg.objectives.sapo import SAPO
from tpg.objectives.sequence_clip import SequenceClip

RATIOS = [0.5, 0.79, 1.0, 1.25, 1.5, 4.0]
WIDE = {"clip_low": 1.0, "clip_high": 1e9}


def evaluated(objective, weight):
    """The surrogate at each ratio, its slope in the log-probability, and what is watched."""
    logprobs_BT = (torch.tensor([RATIOS], dtype=torch.float64).log() - 2).requires_grad_()
    trajectories = record([[2]], [[3] * 6]).replace(
        weights_BT=torch.full((1, 6), weight, dtype=torch.float64),
        old_logprobs_BT=torch.full((1, 6), -2.0, dtype=torch.float64),
    )
    result = objective(logprobs_BT, trajectories)
    result.losses_BT.sum().backward()
    watched = {name: watched_BT.tolist()[0] for name, watched_BT in result.watched_BT.items()}
    return (-result.losses_BT).tolist()[0], (-logprobs_BT.grad).tolist()[0], watched


@pytest.mark.parametrize(
    ("objective", "weights", "clipped"),
    [
        (CISPO(), [0.5, 0.79, 1, 1.25, 1.5, 4], [0, 0, 0, 0, 0, 0]),
        (CISPO(max_ratio=1.28), [0.5, 0.79, 1, 1.25, 1.28, 1.28], [0, 0, 0, 0, 1, 1]),
        (CISPO(max_ratio=2.0, min_ratio=0.8), [0.8, 0.8, 1, 1.25, 1.5, 2], [1, 1, 0, 0, 0, 1]),
        (CISPO(max_ratio=1.0, min_ratio=1.0), [1, 1, 1, 1, 1, 1], [1, 1, 0, 1, 1, 1]),
    ],
    ids=repr,
)
@pytest.mark.parametrize("advantage", [1.0, -0.5])
def test_cispo(objective, weights, clipped, advantage):
    surrogate, slopes, watched = evaluated(objective, advantage)
    logprobs = [-2.693147, -2.235722, -2.0, -1.776856, -1.594535, -0.613706]
    assert slopes == pytest.approx([advantage * weight for weight in weights])
    assert surrogate == pytest.approx([s * logprob for s, logprob in zip(slopes, logprobs, strict=True)], abs=1e-5)
    assert watched == {"ratio": pytest.approx(RATIOS), "clip_ratio/region_mean": clipped}


def test_sapo_gradient_weights():
    """`4 sigma(x) (1 - sigma(x)) ratio` at `x = tau (ratio - 1)`."""
    _, slopes, watched = evaluated(SAPO(), 1.0)
    assert slopes == pytest.approx([0.47001, 0.78135, 1, 1.23067, 1.41002, 0.72283], abs=1e-5)
    assert watched == {"ratio": pytest.approx(RATIOS)}


def test_sapo_has_another_temperature_for_weights_that_are_not_positive():
    """At ratio 4 and tau 1.05, x = 3.15: sigma = .958909, 4 sigma (1 - sigma) 4 = .630445."""
    surrogate, slopes, _ = evaluated(SAPO(), -2.0)
    assert slopes[2] == pytest.approx(-2.0)
    assert slopes[5] == pytest.approx(-2 * 0.630445, abs=1e-5)
    assert surrogate[5] == pytest.approx(-2 * 4 / 1.05 * 0.958909, abs=1e-5)
    assert evaluated(SAPO(tau_negative=1.0), -1.0)[1][5] == pytest.approx(-0.72283, abs=1e-5)
    assert evaluated(SAPO(tau_positive=1.05), 1.0)[1][5] == pytest.approx(0.630445, abs=1e-5)


@pytest.mark.parametrize(
    ("cls", "fields"),
    [
        (CISPO, {"max_ratio": 0.28}),
        (CISPO, {"min_ratio": 1.2}),
        (CISPO, {"min_ratio": -0.1}),
        (CISPO, {"clip_high": 0.2}),
        (SAPO, {"tau_positive": 0.0}),
        (SAPO, {"tau_negative": -1.0}),
    ],
)
def test_options_are_checked(cls, fields):
    with pytest.raises(pydantic.ValidationError, match=next(iter(fields))):
        cls(**fields)


def test_ingredients_that_bias():
    assert CISPO(max_ratio=2.0, min_ratio=0.5).without() == {"clipping": CISPO(max_ratio=1e9)}
    assert CISPO(max_ratio=1e9).without() == {"token-level ratio": SequenceClip(**WIDE)}
    assert SAPO().without() == {"soft gate": PPOClip(**WIDE)}
