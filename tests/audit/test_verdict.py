"""From moments to words, by hand."""

import pytest
import torch
from tables import drawn, of_world

from tpg.audit.exact import Moments
from tpg.audit.tabular import Tree
from tpg.audit.verdict import judged
from tpg.estimators.reinforce import Reinforce
from tpg.reporting.audit_picture import draw_audit

TRUE = [3.0, 4.0]


def moments(mean, trace=2.0, error=0.0, true=TRUE):
    return Moments(
        true=torch.tensor(true, dtype=torch.float64),
        mean=torch.tensor(mean, dtype=torch.float64),
        trace=trace,
        tokens=6.0,
        responses=2.0,
        enumerated=error == 0,
        error=error,
    )


def test_numbers():
    found = judged([moments([3.0, 0.0])])
    assert found.relative_bias == pytest.approx(4 / 5)
    assert found.scale == pytest.approx(9 / 25)
    assert found.cosine == pytest.approx(3 / 5)
    assert found.misdirection == pytest.approx(16 / 25)
    assert found.noise_per_token == pytest.approx(2 * 6 / 9)
    assert found.noise_per_update == pytest.approx(2 * 2 / 9)
    assert (found.trace_covariance, found.generated_tokens) == (2.0, 6.0)
    medians = judged([moments([3.0, 4.0]), moments([6.0, 8.0]), moments([1.5, 2.0])])
    assert (medians.scale, medians.relative_bias) == (pytest.approx(1.0), pytest.approx(0.5))


@pytest.mark.parametrize(
    ("worlds", "exact", "direction", "verdict"),
    [
        ([moments([3.0, 4.0])], True, True, "exact"),
        ([moments([3.0, 4.0 + 1e-3])], False, False, "biased: cos 1 - 7e-09"),
        ([moments([1.5, 2.0])], False, True, "exact direction, scale 0.500"),
        ([moments([1.5, 2.0]), moments([3.0, 4.0])], False, True, "exact direction, scale 0.500 to 1.000"),
        ([moments([-3.0, -4.0])], False, False, "biased: cos -1.000"),
        ([moments([0.0, 0.0], trace=0.0)], False, False, "no gradient at all"),
        ([moments([4.0, -3.0])], False, False, "biased: cos 0.000"),
        ([moments([3.0, 0.0]), moments(TRUE)], False, False, "biased in 1 of 2 worlds: cos down to 0.600"),
        # Drawn: 3 standard errors over the length of the gradient, 5, are a margin of .6.
        ([moments([3.5, 4.0], error=1.0)], True, True, "no bias found, it is below 0.700"),
        ([moments([1.2, 1.6], error=0.5)], False, True, "direction exact within 0.300, scale 0.400"),
        ([moments([-3.0, -4.0], error=0.5)], False, False, "biased: cos -1.000 (sampled, +-0.300)"),
        ([moments([0.3, 0.4], error=0.5)], False, False, "no gradient at all, within 0.300"),
        # One world counted, one drawn.
        ([moments(TRUE), moments([3.5, 4.0], error=1.0)], True, True, "no bias found, it is below 0.700"),
    ],
)
def test_words(worlds, exact, direction, verdict):
    found = judged(worlds)
    assert (found.exact, found.exact_direction, found.verdict) == (exact, direction, verdict)


def test_without_a_signal_all_is_noise():
    for trace in (0.0, 2.0):
        assert judged([moments([0.0, 0.0], trace=trace)]).noise_per_update == 2e9


def test_backwards_is_worse_than_sideways_is_worse_than_forwards():
    angles = [moments(mean) for mean in ([3.0, 4.0], [4.0, 3.0], [4.0, -3.0], [-4.0, -3.0], [-3.0, -4.0])]
    wrong = [judged([one]).misdirection for one in angles]
    assert wrong == sorted(wrong)
    assert (wrong[0], wrong[2], wrong[4]) == (pytest.approx(0.0), pytest.approx(1.0), pytest.approx(2.0))


def test_causes():
    found = judged([moments([3.0, 0.0])])
    assert found.because(["a"], explained=True).verdict == "biased: cos 0.600, because of a"
    assert found.because(["a", "b", "c"], explained=True).verdict == "biased: cos 0.600, because of a, b and c"
    assert found.because(["a"], explained=False).verdict.endswith("because of a, and of more that was not found")
    assert found.because([], explained=False).verdict == "biased: cos 0.600; no cause found"


@pytest.mark.filterwarnings("error")
def test_the_picture_bears_any_numbers(tmp_path):
    row = {"estimator": "a", "exact": False, "exact_direction": False, "varied": {}}
    rows = [
        row | {"relative_bias": bias, "noise_per_token": noise}
        for bias, noise in [(0.5, 10.0), (0.0, 3.0), (1.0, 0.0), (1.0, 1e9), (50.0, 2.0)]
    ]
    draw_audit(tmp_path / "a.png", "title", rows)
    draw_audit(tmp_path / "b.png", "title", [rows[2]])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.png", "b.png"]


def test_what_is_unbiased_is_seldom_blamed_where_batches_are_drawn():
    # One direction, the worst case: a world of one choice between two tokens.
    worlds = [drawn(seed, tree=Tree(vocabulary=2, horizon=1, end=False)) for seed in range(60)]
    found = [of_world(world, Reinforce(), limit=1, samples=300, seed=100 + i) for i, world in enumerate(worlds)]
    assert sum(not judged([one]).exact for one in found) <= 2
