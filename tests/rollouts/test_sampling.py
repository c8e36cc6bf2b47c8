import pytest
import torch

from tpg.rollouts import sampling as module
from tpg.rollouts.sampling import GREEDY, Sampling, draw

INF = float("inf")
ALMOST_ONE = 1 - 2.0**-53
FOUR = [0.4, 0.3, 0.2, 0.1]


def counts(probabilities: list[float], sampling: Sampling, grid: int = 10_000) -> list[int]:
    """How often each token is drawn by the midpoints of an even grid."""
    logits_BV = torch.tensor(probabilities, dtype=torch.float64).log().expand(grid, -1) + 3
    uniforms_B = (torch.arange(grid, dtype=torch.float64) + 0.5) / grid
    return draw(logits_BV, uniforms_B, sampling).tokens_B.bincount(minlength=len(probabilities)).tolist()


@pytest.mark.parametrize(
    ("probabilities", "sampling", "expected"),
    [
        (FOUR, Sampling(), [4000, 3000, 2000, 1000]),
        ([0.1, 0.4, 0.2, 0.3], Sampling(), [1000, 4000, 2000, 3000]),
        (FOUR, Sampling(temperature=0.5), [5333, 3000, 1333, 333]),
        (FOUR, Sampling(temperature=1e9), [2500] * 4),
        (FOUR, Sampling(top_k=1), [10_000, 0, 0, 0]),
        (FOUR, Sampling(top_k=2), [5714, 4286, 0, 0]),
        ([0.1, 0.4, 0.2, 0.3], Sampling(top_k=2), [0, 5714, 0, 4286]),
        (FOUR, Sampling(top_k=4), [4000, 3000, 2000, 1000]),
        (FOUR, Sampling(top_k=9), [4000, 3000, 2000, 1000]),
        (FOUR, Sampling(top_p=0.3), [10_000, 0, 0, 0]),
        (FOUR, Sampling(top_p=0.6), [5714, 4286, 0, 0]),
        ([0.1, 0.4, 0.2, 0.3], Sampling(top_p=0.8), [0, 4444, 2222, 3333]),
        (FOUR, Sampling(top_p=0.95), [4000, 3000, 2000, 1000]),
        (FOUR, Sampling(top_p=1.0), [4000, 3000, 2000, 1000]),
        (FOUR, Sampling(min_p=0.6), [5714, 4286, 0, 0]),
        ([0.1, 0.4, 0.2, 0.3], Sampling(min_p=0.3), [0, 4444, 2222, 3333]),
        (FOUR, Sampling(min_p=0.0), [4000, 3000, 2000, 1000]),
        # top-k comes first: of 4/7 and 3/7 the first alone makes up half.
        (FOUR, Sampling(top_k=2, top_p=0.5), [10_000, 0, 0, 0]),
        # The temperature comes before: 0.16/0.3 is more than half.
        (FOUR, Sampling(temperature=0.5, top_p=0.5), [10_000, 0, 0, 0]),
        (FOUR, Sampling(temperature=0.5, min_p=0.6), [10_000, 0, 0, 0]),
        (FOUR, Sampling(top_p=0.8, min_p=0.6), [5714, 4286, 0, 0]),
        (FOUR, GREEDY, [10_000, 0, 0, 0]),
        ([0.1, 0.2, 0.3, 0.4], GREEDY, [0, 0, 0, 10_000]),
    ],
    ids=str,
)
def test_tokens_are_drawn_in_proportion(probabilities, sampling, expected):
    assert counts(probabilities, sampling) == pytest.approx(expected, abs=1)


def test_a_large_vocabulary_is_drawn_in_proportion():
    logits_V = torch.randn(2000, generator=torch.Generator().manual_seed(0)) * 2
    uniforms_B = (torch.arange(50_000, dtype=torch.float64) + 0.5) / 50_000
    expected = 50_000 * logits_V.double().softmax(-1)
    drawn = draw(logits_V.expand(50_000, -1), uniforms_B, Sampling()).tokens_B.bincount(minlength=2000)
    assert (drawn - expected).abs().max() <= 1.1


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize(
    ("logits", "first", "last"),
    [
        ([-INF, 0.0, -INF, 1.0, -INF], 1, 3),
        ([0.0, 1.0], 0, 1),
        ([-INF, -INF, 5.0], 2, 2),
        ([-2000.0, 0.0, 0.5, -2000.0], 1, 2),
        ([0.1] * 7 + [-INF], 0, 6),
    ],
    ids=str,
)
def test_no_token_of_probability_zero_is_drawn(logits, first, last, dtype):
    uniforms_B = torch.tensor([0.0, 2.0**-53, 1 - 2.0**-24, ALMOST_ONE], dtype=torch.float64)
    drawn = draw(torch.tensor([logits] * 4, dtype=dtype), uniforms_B, Sampling())
    assert drawn.tokens_B.tolist() == [first, first, last, last]
    assert drawn.logprobs_B.isfinite().all()


@pytest.mark.parametrize("sampling", [Sampling(top_k=2), Sampling(top_p=0.6), Sampling(min_p=0.6)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_no_token_that_is_cut_off_is_drawn(sampling, dtype):
    logits_BV = torch.tensor([[0.1, 0.4, 0.2, 0.3]] * 2, dtype=dtype).log()
    drawn = draw(logits_BV, torch.tensor([0.0, ALMOST_ONE], dtype=torch.float64), sampling)
    assert drawn.tokens_B.tolist() == [1, 3]


@pytest.mark.parametrize(
    ("sampling", "tokens", "probabilities"),
    [
        (Sampling(), [0, 2], [0.4, 0.2]),
        (Sampling(temperature=0.5), [0, 2], [0.16 / 0.3, 0.04 / 0.3]),
        (Sampling(top_k=2), [0, 1], [0.4, 0.3]),
        (Sampling(top_p=0.6), [0, 1], [0.4, 0.3]),
        (Sampling(min_p=0.6), [0, 1], [0.4, 0.3]),
        (Sampling(temperature=0.5, top_k=2), [0, 1], [0.16 / 0.3, 0.09 / 0.3]),
        (GREEDY, [0, 0], [0.4, 0.4]),
    ],
    ids=str,
)
def test_log_probabilities_are_the_untruncated_policys(sampling, tokens, probabilities):
    logits_BV = torch.tensor([FOUR] * 2, dtype=torch.float64).log() - 4
    drawn = draw(logits_BV, torch.tensor([0.1, 0.86], dtype=torch.float64), sampling)
    assert drawn.tokens_B.tolist() == tokens
    assert drawn.logprobs_B.exp().tolist() == pytest.approx(probabilities)


@pytest.mark.parametrize(
    ("given", "computed"),
    [(torch.bfloat16, torch.float32), (torch.float32, torch.float32), (torch.float64, torch.float64)],
)
def test_precision_of_log_probabilities(given, computed):
    drawn = draw(torch.tensor([[0.0, 1.0, 2.0]], dtype=given), torch.tensor([0.5], dtype=torch.float64), Sampling())
    assert drawn.logprobs_B.dtype == computed
    assert drawn.logprobs_B.item() == pytest.approx(-0.407606, abs=1e-6)


def test_each_row_is_drawn_from_its_own_distribution():
    logits_BV = torch.tensor([[0.0, -INF, -INF], [-INF, 0.0, 0.0], [0.0, 0.0, 0.0]])
    drawn = draw(logits_BV, torch.tensor([0.9, 0.6, 0.5], dtype=torch.float64), Sampling())
    assert drawn.tokens_B.tolist() == [0, 2, 1]


@pytest.mark.parametrize(
    ("sampling", "truncates"),
    [
        (Sampling(temperature=0.6), False),
        (Sampling(top_k=5), True),
        (Sampling(top_p=0.9), True),
        (Sampling(min_p=0.1), True),
        (GREEDY, False),
    ],
    ids=str,
)
def test_truncates(sampling, truncates):
    assert sampling.truncates is truncates


@pytest.mark.parametrize("sampling", [Sampling(temperature=0.7), Sampling(top_p=0.8), GREEDY], ids=str)
def test_how_many_rows_are_drawn_at_a_time_changes_nothing(monkeypatch, sampling):
    generator = torch.Generator().manual_seed(0)
    logits_BV = 2 * torch.randn(7, 30, generator=generator)
    uniforms_B = torch.rand(7, generator=generator, dtype=torch.float64)
    together = draw(logits_BV, uniforms_B, sampling)
    for logits in (1, 60, 100):  # rows of 30: less than one, two, three with one left over
        monkeypatch.setattr(module, "LOGITS_IN_CACHE", logits)
        apart = draw(logits_BV, uniforms_B, sampling)
        assert torch.equal(apart.tokens_B, together.tokens_B)
        torch.testing.assert_close(apart.logprobs_B, together.logprobs_B)
