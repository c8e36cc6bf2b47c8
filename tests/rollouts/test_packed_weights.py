"""Linear layers with packed weights, against plain ones in the same type."""

import copy

import pytest
import torch
from builders import tiny_policy
from torch import nn

from tpg.policies.attention import Decoder
from tpg.policies.base import LoRA
from tpg.rollouts.native import packed as module
from tpg.rollouts.native.packed import PackedLinear, can_pack
from tpg.rollouts.native.weights import CopiedWeights

needs_packing = pytest.mark.skipif(
    not can_pack(nn.Linear(2, 2, dtype=torch.bfloat16)), reason="torch packs no bfloat16 weights on this machine"
)


@pytest.fixture
def packing_tried_anew():
    module._packs.cache_clear()
    yield
    module._packs.cache_clear()


@needs_packing
@pytest.mark.parametrize("shape", [(6,), (2, 6), (5, 1, 6), (1, 9, 6)], ids=str)
def test_a_packed_layer_multiplies(shape):
    """Small whole numbers, which bfloat16 holds exactly."""
    weight = torch.arange(24.0).reshape(4, 6) % 5
    bias = nn.Parameter(torch.tensor([1.0, 2.0, 3.0, 4.0]).bfloat16())
    rows = (torch.arange(6.0 * torch.Size(shape[:-1]).numel()) % 3).reshape(shape)
    layer = PackedLinear(bias)
    with torch.no_grad():
        layer.pack(weight)
        assert torch.equal(layer(rows.bfloat16()).float(), rows @ weight.T + torch.tensor([1.0, 2.0, 3.0, 4.0]))


def test_what_is_not_packed():
    assert not can_pack(nn.Linear(2, 2))
    assert not can_pack(nn.Embedding(2, 2, dtype=torch.bfloat16))
    assert not can_pack(nn.Linear(2, 2, dtype=torch.bfloat16, device="meta"))
    assert not can_pack(type("Other", (nn.Linear,), {})(2, 2, dtype=torch.bfloat16))


def test_a_function_that_errs_is_not_used(monkeypatch, packing_tried_anew):
    if not torch.backends.mkldnn.is_available():
        pytest.skip("torch has no oneDNN here")
    monkeypatch.setattr(PackedLinear, "forward", lambda self, rows: rows)
    with pytest.warns(UserWarning, match="decoding does not pack weights"):
        assert not can_pack(nn.Linear(2, 2, dtype=torch.bfloat16))


def test_trying_it_draws_no_random_number(packing_tried_anew):
    before = torch.get_rng_state()
    can_pack(nn.Linear(2, 2, dtype=torch.bfloat16, device="meta"))
    module._packs()
    assert torch.equal(torch.get_rng_state(), before)


@needs_packing
@pytest.mark.parametrize("lora", [None, LoRA(rank=2)], ids=["full", "lora"])
def test_a_copy_follows_every_weight(lora):
    """States and logits are those of the policy in bfloat16, also after every weight has changed."""
    policy = tiny_policy(layers=2, lora=lora)
    copied = CopiedWeights(policy, torch.bfloat16)
    linears = [type(part) for part in copied.decoder.trunk.modules() if isinstance(part, nn.Linear | PackedLinear)]
    assert set(linears) == {PackedLinear}
    assert type(copied.decoder.head) is PackedLinear
    ids_BS = torch.tensor([[5, 6, 7, 8]])
    positions_BS = torch.arange(4)[None]

    def attend(layer, query, key, value, scale):
        attended = nn.functional.scaled_dot_product_attention(query, key, value, is_causal=True, scale=scale)
        return attended.transpose(1, 2)

    found = []
    for _ in range(2):
        copied.update()
        plain = copy.deepcopy(policy.model)
        plain = Decoder((plain.merge_and_unload() if lora else plain).to(torch.bfloat16))
        with torch.no_grad():
            logits, expected = (d.head(d(ids_BS, positions_BS, attend)).float() for d in (copied.decoder, plain))
            for weight in policy.parameters():
                weight.add_(0.2 * torch.ones_like(weight).cumsum(-1).sin())
        torch.testing.assert_close(logits, expected, rtol=0.05, atol=0.05 * float(expected.abs().max()))
        found.append(logits)
    assert (found[0] - found[1]).abs().max() > 0.5
