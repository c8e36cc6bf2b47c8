import pytest
import torch

from tpg.numerics import group_sum, masked_mean, masked_sum, token_statistics

NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize("hidden", [NAN, INF, -INF])
def test_masked_sum_hides_anything(hidden):
    values_BT = torch.tensor([[1.0, hidden, 2.0], [hidden, hidden, hidden]], requires_grad=True)
    mask_BT = torch.tensor([[True, False, True], [False, False, False]])
    sums_B = masked_sum(values_BT, mask_BT)
    (sums_B * torch.tensor([1.0, 3.0])).sum().backward()
    assert sums_B.tolist() == [3.0, 0.0]
    assert values_BT.grad.tolist() == [[1.0, 0.0, 1.0], [0.0, 0.0, 0.0]]


def test_masked_mean():
    values_BT = torch.tensor([[1.0, NAN, 2.0], [6.0, NAN, NAN]])
    mask_BT = torch.tensor([[True, False, True], [True, False, False]])
    assert masked_mean(values_BT, mask_BT).item() == 3.0
    assert masked_mean(values_BT[0], mask_BT[0]).item() == 1.5
    assert masked_mean(values_BT, torch.zeros(2, 3, dtype=torch.bool)).item() == 0.0


def test_group_sum():
    values_B = torch.tensor([1.0, 10.0, 2.0, 20.0, 4.0], dtype=torch.float64)
    assert group_sum(values_B, torch.tensor([0, 2, 0, 2, 1])).tolist() == [3.0, 30.0, 3.0, 30.0, 4.0]
    assert group_sum(torch.tensor([2, 3]), torch.tensor([0, 0])).tolist() == [5, 5]
    assert group_sum(torch.zeros(0), torch.zeros(0, dtype=torch.long)).tolist() == []


LOGITS = torch.tensor([[2.0, -1.0, 0.5, 0.0], [0.0, 0.0, 0.0, 0.0], [-3.0, 4.0, 1.0, 30.0]], dtype=torch.float64)
TOKENS = torch.tensor([0, 3, 1])


@pytest.mark.parametrize("temperature", [0.7, 1.0, 2.5])
def test_token_statistics_against_torch(temperature):
    statistics = token_statistics(LOGITS, TOKENS, temperature, distribution=True)
    logp_NV = (LOGITS / temperature).log_softmax(-1)
    torch.testing.assert_close(statistics.logprobs, logp_NV[[0, 1, 2], [0, 3, 1]])
    torch.testing.assert_close(
        statistics.entropy, torch.distributions.Categorical(logits=LOGITS / temperature).entropy()
    )
    torch.testing.assert_close(statistics.sum_squared_probs, logp_NV.exp().square().sum(-1))


def test_token_statistics_by_hand():
    # Probabilities 1/2, 1/4, 1/4 at temperature 1/2.
    logits = 0.5 * torch.tensor([[0.5, 0.25, 0.25]], dtype=torch.float64).log() + 7
    logprob, entropy, squared = token_statistics(logits, torch.tensor([1]), 0.5, distribution=True)[:3]
    assert (logprob.item(), entropy.item(), squared.item()) == pytest.approx((-1.386294, 1.039721, 0.375), abs=1e-6)


def test_token_statistics_at_impossible_tokens():
    statistics = token_statistics(torch.tensor([[0.0, -INF, 0.0]]), torch.tensor([0]), 1.0, distribution=True)
    assert [value.item() for value in statistics[:3]] == pytest.approx([-0.693147, 0.693147, 0.5])


def test_the_gradient_of_the_log_probability():
    logits_NV = LOGITS.clone().requires_grad_()
    token_statistics(logits_NV, TOKENS, 0.5).logprobs[1].backward()
    assert logits_NV.grad.tolist() == [[0.0] * 4, pytest.approx([-0.5, -0.5, -0.5, 1.5]), [0.0] * 4]


def test_the_gradient_of_the_entropy_is_finite_where_a_token_is_impossible():
    # Probabilities 1/4, 3/4 and 0: dH/dlogit = -p (log p + H).
    logits_NV = torch.tensor([[0.25, 0.75, 0.0]], dtype=torch.float64).log().requires_grad_()
    entropy = token_statistics(logits_NV, torch.tensor([0]), 1.0, distribution=True).entropy
    entropy.sum().backward()
    assert entropy.tolist() == pytest.approx([0.562335], abs=1e-6)
    assert logits_NV.grad.tolist() == [pytest.approx([0.205990, -0.205990, 0.0], abs=1e-6)]


def test_the_distribution_is_left_out_unless_asked_for():
    assert token_statistics(LOGITS, TOKENS, 1.0)[1:] == (None, None, None)


@pytest.mark.parametrize(
    ("given", "computed"),
    [
        (torch.bfloat16, torch.float32),
        (torch.float16, torch.float32),
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
    ],
)
def test_half_precision_logits_are_reduced_in_single_precision(given, computed):
    # These logits are exact in bfloat16, so that only the precision of the reduction can make a difference.
    statistics = token_statistics(LOGITS.to(given), TOKENS, 0.7, distribution=True)
    exact = token_statistics(LOGITS, TOKENS, 0.7, distribution=True)
    for value, expected in zip(statistics[:3], exact[:3], strict=True):
        assert value.dtype == computed
        torch.testing.assert_close(value.double(), expected, rtol=1e-5, atol=1e-6)
