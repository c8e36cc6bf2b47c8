"""Sketches against autograd's gradient in the output layer's weight."""

import pytest
import torch
from builders import gpt2_policy, record, tiny_policy, widened
from torch import nn
from torch.testing import assert_close

from tpg.policies.sketch import Projections, TokenSketches, output_layer, sketched

PROMPTS = [[40], [12, 13, 14], [50, 51]]
RESPONSES = [[30, 31, 32, 1], [1], [60, 61]]
UNPROJECTED = Projections(None, None)


@pytest.fixture(params=[tiny_policy, gpt2_policy], ids=["llama", "gpt2"])
def policy(request):
    """An untied output layer, so that its gradient is that of the logits alone."""
    policy = request.param()
    policy.model.double()
    output_layer(policy).weight = nn.Parameter(output_layer(policy).weight.detach().clone())
    return policy


@pytest.mark.parametrize("temperature", [0.7, 1.0])
@pytest.mark.parametrize("responses", [1, 2, 5])
def test_the_unprojected_sketch_is_the_gradient_in_the_output_layer(policy, temperature, responses):
    trajectories = record(PROMPTS, RESPONSES)
    sketches, with_statistics = sketched(policy, trajectories, temperature, UNPROJECTED, responses, distribution=True)
    statistics = policy.statistics(trajectories, temperature, distribution=True)
    assert_close(with_statistics.old_logprobs_BT, statistics.logprobs.detach(), rtol=0, atol=1e-12)
    assert_close(with_statistics.entropy_BT, statistics.entropy.detach(), rtol=0, atol=1e-12)
    weight = output_layer(policy).weight
    for i, response in enumerate(RESPONSES):
        for t in range(len(response)):
            (gradient,) = torch.autograd.grad(statistics.logprobs[i, t], weight, retain_graph=True)
            outer = torch.outer(sketches.left_BTL[i, t], sketches.right_BTR[i, t])
            assert gradient.abs().max() > 0.01
            assert_close(outer, gradient, rtol=0, atol=1e-6)
        assert not sketches.left_BTL[i, len(response) :].any()


def test_sums_weigh_every_token():
    left_BTL = torch.tensor([[[1.0, 2.0], [0.0, 1.0]], [[3.0, 0.0], [9.0, 9.0]]])
    right_BTR = torch.tensor([[[1.0, 0.0], [2.0, 4.0]], [[1.0, -1.0], [9.0, 9.0]]])
    sums = TokenSketches(left_BTL, right_BTR).sums(torch.tensor([[2.0, 0.5], [-1.0, 0.0]]))
    assert sums.tolist() == [[2.0, 0.0, 5.0, 2.0], [-3.0, 3.0, 0.0, 0.0]]


def test_mixed_precision_rounds_no_product_of_sketches():
    generator = torch.Generator().manual_seed(0)
    sketches = TokenSketches(torch.randn(2, 5, 8, generator=generator), torch.randn(2, 5, 8, generator=generator))
    coefficients_BT = torch.randn(2, 5, generator=generator)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = sketches.sums(coefficients_BT)
    assert mixed.dtype == torch.float32
    assert_close(mixed, sketches.sums(coefficients_BT), rtol=0, atol=1e-6)


def test_projections_keep_inner_products_on_average():
    policy = tiny_policy()
    trajectories = record(PROMPTS, RESPONSES)
    coefficients_BT = trajectories.response_mask_BT.float()
    whole = sketched(policy, trajectories, 1.0, UNPROJECTED, 5)[0].sums(coefficients_BT)
    expected = whole @ whole.T
    products = []
    for seed in range(60):
        sums = sketched(policy, trajectories, 1.0, Projections.random(policy, 16, 16, seed), 5)[0].sums(coefficients_BT)
        assert sums.shape == (3, 256)
        products.append(sums @ sums.T)
    found = torch.stack(products)
    error = found.std(0) / 60**0.5
    assert ((found.mean(0) - expected).abs() < 4 * error).all()
    assert (error < 0.1 * expected.diagonal().max()).all()


def test_projections_are_a_function_of_their_seed():
    policy = tiny_policy()
    first, again, other = (Projections.random(policy, 8, 4, seed) for seed in (1, 1, 2))
    assert torch.equal(first.vocabulary_VL, again.vocabulary_VL)
    assert not torch.equal(first.vocabulary_VL, other.vocabulary_VL)
    assert first.vocabulary_VL.shape == (99, 8)
    assert first.hidden_HR.shape == (128, 4)
    assert first.hidden_HR.abs().unique().tolist() == [0.5]


def test_what_the_masks_hide_changes_nothing():
    policy = tiny_policy()
    plain = sketched(policy, record(PROMPTS, RESPONSES), 1.0, UNPROJECTED, 5)[0]
    padded = sketched(policy, widened(record(PROMPTS, RESPONSES)), 1.0, UNPROJECTED, 5)[0]
    assert_close(padded.left_BTL[:, :4], plain.left_BTL, rtol=0, atol=1e-5)
    assert_close(padded.right_BTR[:, :4], plain.right_BTR, rtol=0, atol=1e-4)
    assert not padded.left_BTL[:, 4:].any()


def test_adapters_leave_the_output_layer_to_be_found():
    policy = tiny_policy(lora={"rank": 2})
    sketches, _ = sketched(policy, record(PROMPTS, RESPONSES), 1.0, Projections.random(policy, 4, 4, 0), 5)
    assert sketches.left_BTL.shape == (3, 4, 4)
    assert sketches.left_BTL[0].abs().sum() > 0
