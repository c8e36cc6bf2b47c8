"""Prompts that are computed once for all their responses, against a rectangle that computes every one."""

import pytest
import torch
from builders import family_policy, gpt2_policy, in_double_precision, record, tiny_policy, widened

from tpg.policies import flash
from tpg.policies.attention import FAMILIES
from tpg.policies.base import LoRA, Policy, Reference
from tpg.policies.shared_prefix import Pair, Span, layout_of

EOS = 1
LONG = [7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25]
# Two responses to a prompt of one token, three to a long one (a middle one of one token), one alone, two of one length.
PROMPTS = [[40], LONG, [40], LONG, [5, 6], LONG, [40, 41, 42], [40, 41, 42]]
RESPONSES = [[30, 31, 32, EOS], [20] * 9, [4, 5], [EOS], [9, 8, 7], [60, 61], [10, 11, 12, 13, 14, 15, 16], [11] * 7]
CASES = {
    "odd shapes": (PROMPTS, RESPONSES),
    "alone": ([[3, 4, 5]], [[6, 7]]),
    "one token": ([[3], [3], [4]], [[6], [7], [8]]),
    "one response a prompt": (PROMPTS[:2] + PROMPTS[4:5], RESPONSES[:2] + RESPONSES[4:5]),
    "equal lengths": ([[3, 4, 5]] * 3 + [[6, 7, 8]] * 3, [[i, i + 1, i + 2, i + 3] for i in range(10, 16)]),
    "a prompt begins another": ([[3, 4], [3, 4, 5], [3, 4]], [[5, 6], [6, 7], [5, 9]]),
}


def results(policy: Policy, trajectories, layout, *, temperature=0.9):
    """Statistics at the response tokens, and the gradient of a mixture of them."""
    policy.zero_grad()
    found = policy.statistics(trajectories, temperature, distribution=True, hidden=True, layout=layout)
    mask_BT = trajectories.response_mask_BT
    slopes_N = torch.linspace(-1, 2, int(mask_BT.sum()), dtype=found.logprobs.dtype)
    total_N = found.logprobs[mask_BT] + 0.3 * found.entropy[mask_BT] + 0.01 * found.hidden[mask_BT].square().sum(-1)
    (total_N * slopes_N).sum().backward()
    gradients = {name: weight.grad.clone() for name, weight in policy.named_parameters() if weight.grad is not None}
    return [values.detach() for values in found], gradients


def assert_equal(policy: Policy, trajectories, other: Policy | None = None) -> None:
    found, gradients = results(policy, trajectories, "shared")
    expected, expected_gradients = results(other or policy, trajectories, "padded")
    for one, values in zip(found, expected, strict=True):
        assert one.shape == values.shape
        torch.testing.assert_close(one, values, rtol=1e-10, atol=1e-10)
    assert gradients.keys() == expected_gradients.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, expected_gradients[name], rtol=1e-10, atol=1e-10)


def family(name: str, **options) -> Policy:
    return in_double_precision(family_policy(name, **options))


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
@pytest.mark.parametrize("heads", ["equal", "grouped"])
def test_statistics_and_gradients_are_the_rectangles(case, heads):
    policy = in_double_precision(tiny_policy(layers=2, hidden_size=32)) if heads == "equal" else family("llama")
    assert_equal(policy, record(*case))


@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_every_family(name):
    windows = {"gemma3_text": {"sliding_window": 40}, "mistral": {"sliding_window": None}}
    policy = family(name, **windows.get(name, {}))
    trajectories = record(*CASES["odd shapes"])
    assert policy.shares_prompts(28)
    assert_equal(policy, trajectories)


def test_a_window_shorter_than_the_context_takes_the_rectangle():
    policy = family("mistral", sliding_window=20)
    trajectories = record(*CASES["odd shapes"])
    assert policy.shares_prompts(20)
    assert not policy.shares_prompts(28)
    chosen, padded = (policy.statistics(trajectories, 1.0, layout=layout).logprobs for layout in (None, "padded"))
    assert torch.equal(chosen, padded)


def test_other_models_take_the_rectangle():
    policy = gpt2_policy()
    assert not policy.shares_prompts(1)
    assert policy.statistics(record(*CASES["odd shapes"]), 1.0).logprobs.shape == (8, 9)


def test_what_padding_holds_changes_nothing():
    policy = in_double_precision(tiny_policy(layers=2))
    trajectories = record(*CASES["odd shapes"])
    narrow = policy.statistics(trajectories, 0.8, layout="shared").logprobs
    wide = policy.statistics(widened(trajectories), 0.8, layout="shared").logprobs
    torch.testing.assert_close(wide[:, :9], narrow, rtol=0, atol=1e-12)
    assert not wide[:, 9:].any()


@pytest.mark.parametrize("lora", [None, LoRA(rank=4)])
def test_gradient_checkpointing_changes_nothing(lora):
    options = {"layers": 2, "hidden_size": 32, "lora": lora}
    checkpointed, plain = (
        in_double_precision(tiny_policy(gradient_checkpointing=checkpointing, **options))
        for checkpointing in (True, False)
    )
    for policy in (checkpointed, plain):
        for name, weight in policy.named_parameters():
            if "lora_B" in name:
                torch.nn.init.constant_(weight, 0.1)
    trajectories = record(*CASES["odd shapes"])
    assert_equal(checkpointed, trajectories, plain)
    (_, gradients) = results(checkpointed, trajectories, "shared")
    assert all("lora_" in name for name in gradients) == (lora is not None)


def test_checkpointing_keeps_less():
    trajectories = record(*CASES["odd shapes"])
    assert saved(tiny_policy(gradient_checkpointing=True), trajectories) < 0.7 * saved(tiny_policy(), trajectories)


def test_the_reference_is_the_model_without_its_adapter():
    bare, policy = (in_double_precision(tiny_policy(layers=2, lora=lora)) for lora in (None, LoRA(rank=4)))
    for name, weight in policy.named_parameters():
        if "lora_B" in name:
            torch.nn.init.constant_(weight, 0.1)
    trajectories = record(*CASES["odd shapes"])
    expected = bare.statistics(trajectories, 1.0, layout="padded").logprobs
    torch.testing.assert_close(Reference(policy).logprobs(trajectories, 1.0), expected, rtol=0, atol=1e-10)
    assert (policy.statistics(trajectories, 1.0).logprobs - expected).abs().max() > 0.01


def test_the_other_layouts_are_untouched_by_it():
    policy = in_double_precision(tiny_policy(layers=2))
    trajectories = record(*CASES["odd shapes"])
    before = {name: policy.statistics(trajectories, 1.0, layout=name).logprobs for name in ("padded", "packed")}
    policy.statistics(trajectories, 1.0, layout="shared")
    for name, expected in before.items():
        assert torch.equal(policy.statistics(trajectories, 1.0, layout=name).logprobs, expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_mixed_precision_is_near(dtype):
    policy = tiny_policy(scale=2.0, layers=2)
    trajectories = record(*CASES["odd shapes"])
    _, exact = results(policy, trajectories, "shared")
    with torch.autocast("cpu", dtype):
        found, gradients = results(policy, trajectories, "shared")
    assert found[0].dtype == torch.float32
    one, other = (torch.cat([gradient.flatten() for gradient in part.values()]) for part in (gradients, exact))
    assert torch.nn.functional.cosine_similarity(one, other, dim=0) > 0.99


def test_the_row_by_hand():
    """Prompts first, the short one before; a group's responses by length, each without its last token."""
    row = layout_of(record([[5, 6, 7], [8], [5, 6, 7]], [[20, 21, 22], [30, 31], [40, EOS]]))
    assert row.ids_S.tolist() == [8, 5, 6, 7, 30, 40, 20, 21]
    assert row.positions_S.tolist() == [0, 0, 1, 2, 1, 3, 3, 4]
    assert row.predicts_N.tolist() == [3, 6, 7, 0, 4, 3, 5]
    assert row.pairs == (Pair(Span(0, 1), Span(4, 1)), Pair(Span(1, 3), Span(5, 3)))


def test_a_ragged_batch_computes_no_padding():
    lengths = [1, 3, 40, 7, 22, 64, 5, 12]
    trajectories = record([LONG] * 4 + [[3, 4]] * 4, [[9] * length for length in lengths])
    row = layout_of(trajectories)
    assert len(row.ids_S) == len(LONG) + 2 + sum(lengths) - len(lengths)
    padded = sum(tile.segments * tile.length for tile in row.tiles)
    assert padded <= 1.25 * len(row.ids_S)  # of attention alone
    assert sorted(place for tile in row.tiles for place in tile.tokens[tile.kept].tolist()) == list(
        range(len(row.ids_S))
    )


def saved(policy: Policy, trajectories) -> int:
    """Bytes that wait for the backward pass, each storage once."""
    storages = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        kept.append(tensor)
        return tensor

    kept: list[torch.Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        policy.statistics(trajectories, 1.0)
    weights = {weight.untyped_storage().data_ptr() for weight in policy.parameters()}
    return sum(size for pointer, size in storages.items() if pointer not in weights)


def test_memory_grows_with_the_tokens():
    policy = tiny_policy(layers=2)
    short, long = (saved(policy, record([[5, 6]] * 4, [[9] * length for _ in range(4)])) for length in (101, 401))
    # 402 and 1602 tokens in the row; twice the heads' squares would be 16 times as much.
    assert long < 4.05 * short


@pytest.mark.parametrize("causal", [True, False])
def test_plain_products_where_there_is_no_kernel(monkeypatch, causal):
    """The way of other devices, on the meta of numbers: values and gradients equal the kernel's."""
    generator = torch.Generator().manual_seed(0)
    query, slope = (torch.randn(2, 4, 5, 8, generator=generator, dtype=torch.float64) for _ in range(2))
    key, value = (torch.randn(2, 2, 5, 8, generator=generator, dtype=torch.float64) for _ in range(2))

    def run():
        out, total = flash.attend(query, key, value, 0.3, causal=causal)
        return out, total, *flash.attend_backward((slope, query, key, value, out, total), 0.3, causal=causal)

    expected = run()
    monkeypatch.setattr(flash, "_kernel", lambda query: None)
    for one, other in zip(run(), expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)
