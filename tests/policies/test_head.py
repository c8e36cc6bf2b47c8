"""Statistics of an output layer's logits that are never all held, against those of the logits."""

import math

import pytest
import torch
from torch import nn

from tpg.numerics import token_statistics
from tpg.policies import head as module
from tpg.policies.head import head_statistics

HIDDEN = torch.tensor([[1.0, 0.0], [0.0, 2.0], [-1.0, 1.0]], dtype=torch.float64)
WEIGHT = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, -1.0], [2.0, 1.0]], dtype=torch.float64)


def linear(weight, **options) -> nn.Linear:
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False, dtype=weight.dtype, **options)
    layer.weight = nn.Parameter(weight.clone())
    return layer


@pytest.fixture
def small_chunks(monkeypatch):
    monkeypatch.setattr(module, "TOKENS_AT_A_TIME", 4)
    monkeypatch.setattr(module, "ROWS_IN_CACHE", 3)
    monkeypatch.setattr(module, "LOGITS_AT_A_TIME", {"cpu": 50})


def random_case(tokens=11, vocabulary=13, width=5, dtype=torch.float64):
    generator = torch.Generator().manual_seed(3)
    hidden = torch.randn(tokens, width, generator=generator, dtype=torch.float64).to(dtype)
    weight = torch.randn(vocabulary, width, generator=generator, dtype=torch.float64).to(dtype)
    chosen = torch.randint(vocabulary, (tokens,), generator=generator)
    return hidden, weight, chosen


def test_by_hand():
    """Logits ln 2, 0, 0 at temperature 1/2 are probabilities 4/6, 1/6, 1/6."""
    weight = torch.tensor([[math.log(2.0)], [0.0], [0.0]], dtype=torch.float64)
    hidden = torch.ones(1, 1, dtype=torch.float64, requires_grad=True)
    layer = linear(weight)
    found = head_statistics(layer, hidden, torch.tensor([1]), 0.5, distribution=True)
    values = [found.logprobs.item(), found.entropy.item(), found.sum_squared_probs.item()]
    assert values == pytest.approx([-1.791759, 0.867563, 0.5], abs=1e-6)
    found.logprobs.sum().backward()
    # 1/T (onehot - p), times the hidden state 1; its own gradient is -1/T * 4/6 * ln 2.
    assert layer.weight.grad[:, 0].tolist() == pytest.approx([-4 / 3, 5 / 3, -1 / 3])
    assert hidden.grad.item() == pytest.approx(-4 / 3 * math.log(2.0))


def test_the_entropy_bonus_by_hand():
    """d entropy / d logit_i = -p_i (ln p_i + entropy) / T, at probabilities 4/6, 1/6, 1/6."""
    layer = linear(torch.tensor([[math.log(2.0)], [0.0], [0.0]], dtype=torch.float64))
    hidden = torch.ones(1, 1, dtype=torch.float64)
    head_statistics(layer, hidden, torch.tensor([1]), 0.5, distribution=True).entropy.sum().backward()
    assert layer.weight.grad[:, 0].tolist() == pytest.approx([-0.616131, 0.308065, 0.308065], abs=1e-6)


@pytest.mark.parametrize("temperature", [0.6, 1.0, 1.7])
@pytest.mark.parametrize("plain", [True, False])
def test_values_and_gradients_are_those_of_the_logits(small_chunks, temperature, plain):
    hidden, weight, tokens = random_case()

    def run(of_logits):
        states = hidden.clone().requires_grad_()
        layer = linear(weight)
        used = layer if plain else nn.Sequential(layer)
        if of_logits:
            found = token_statistics(used(states), tokens, temperature, distribution=True)
        else:
            found = head_statistics(used, states, tokens, temperature, distribution=True)
        slopes = torch.linspace(-1, 2, 11, dtype=torch.float64)
        (found.logprobs * slopes + 0.3 * found.entropy * slopes.flip(0)).sum().backward()
        return *found[:3], states.grad, layer.weight.grad

    for one, other in zip(run(False), run(True), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("distribution", [False, True])
def test_gradcheck(small_chunks, distribution):
    _, _, tokens = random_case(5, 7, 2)

    def function(hidden, weight):
        found = module._Statistics.apply(hidden, weight, tokens, 0.8, distribution, torch.float64)
        return found[:2] if distribution else found

    inputs = [tensor.requires_grad_() for tensor in random_case(5, 7, 2)[:2]]
    assert torch.autograd.gradcheck(function, inputs)


def test_the_sum_of_squares_carries_no_gradient():
    found = head_statistics(linear(WEIGHT), HIDDEN, torch.tensor([0, 1, 2]), 1.0, distribution=True)
    assert found.logprobs.requires_grad
    assert found.entropy.requires_grad
    assert not found.sum_squared_probs.requires_grad


def test_what_is_frozen_gets_no_gradient():
    layer = linear(WEIGHT).requires_grad_(False)
    states = HIDDEN.clone().requires_grad_()
    head_statistics(layer, states, torch.tensor([0, 1, 2]), 1.0).logprobs.sum().backward()
    assert layer.weight.grad is None
    assert states.grad.abs().sum() > 0
    other = linear(WEIGHT)
    head_statistics(other, HIDDEN, torch.tensor([0, 1, 2]), 1.0).logprobs.sum().backward()
    assert other.weight.grad.abs().sum() > 0


def test_a_bias_is_not_forgotten():
    layer = nn.Linear(2, 4, dtype=torch.float64)
    tokens = torch.tensor([0, 1, 2])
    found = head_statistics(layer, HIDDEN, tokens, 1.0).logprobs
    expected = layer(HIDDEN).log_softmax(-1)[[0, 1, 2], [0, 1, 2]]
    assert layer.bias.abs().sum() > 0
    torch.testing.assert_close(found, expected)


def test_no_tokens_at_all():
    layer = linear(WEIGHT)
    found = head_statistics(layer, HIDDEN[:0], torch.zeros(0, dtype=torch.long), 1.0, distribution=True)
    assert found.logprobs.shape == found.entropy.shape == (0,)
    found.logprobs.sum().backward()
    assert not layer.weight.grad.any()


def test_statistics_are_float32_under_autocast():
    hidden, weight, tokens = random_case(dtype=torch.float32)
    layer = linear(weight)
    states = hidden.clone().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        found = head_statistics(layer, states, tokens, 1.0).logprobs
        expected = token_statistics(layer(states), tokens, 1.0).logprobs
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected)
    found.sum().backward()
    assert layer.weight.grad.dtype == states.grad.dtype == torch.float32


def test_logits_are_not_kept(small_chunks):
    hidden, weight, tokens = random_case(tokens=64, vocabulary=200)
    layer = linear(weight)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor.numel()) or tensor, lambda t: t):
        head_statistics(layer, hidden.requires_grad_(), tokens, 1.0, distribution=True)
    assert sum(kept) == 64 * 5 + 200 * 5 + 3 * 64
