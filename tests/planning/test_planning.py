"""Counts are exact where a run's own tensors tell them; the rest is held against what a pass really keeps."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from published import Published, experiment, setting

from tpg.errors import UserError
from tpg.planning.activations import activations, layer_of
from tpg.planning.advice import advice_for
from tpg.planning.layout import Layout, layout_of
from tpg.planning.memory import AdamW8bit, memory_of, optimizer_bytes
from tpg.planning.options import Plan
from tpg.planning.outline import bytes_of, outline_of
from tpg.policies.attention import Decoder
from tpg.policies.base import LoRA
from tpg.policies.shared_prefix import layout_of as row_of
from tpg.policies.tiny import Tiny
from tpg.training.trainer import TrainerOptions

TINY = ("policy=tiny", "task=sort", "reward_model=[sorted_digits]")
SIZES = {"rollout.max_prompt_tokens": 12, "rollout.max_response_tokens": 8, "evaluation.every": 0}
SMALL = (*TINY, *(f"{key}={value}" for key, value in SIZES.items()))


def part(memory, name):
    """The one of this name."""
    (found,) = [part for part in memory.parts if part.name == name]
    return found


def test_an_outline_has_every_weight_of_the_policy_and_none_of_its_numbers():
    options = Tiny(lora=LoRA(rank=4))
    outlined, real = options.outline(), options.load(seed=0).model
    assert {p.device.type for p in outlined.parameters()} == {"meta"}

    def shapes(model):
        return {name: (p.shape, p.dtype, p.requires_grad) for name, p in model.named_parameters()}

    assert shapes(outlined) == shapes(real)


@pytest.mark.parametrize("precision", ["32-true", "bf16-true"])
@pytest.mark.parametrize("lora", [None, LoRA(rank=4)], ids=["full", "lora"])
def test_optimizer_bytes_are_those_of_the_optimizers_state_after_a_step(precision, lora):
    made = replace(experiment(*TINY), policy=Tiny(lora=lora))
    outline = outline_of(made, precision)
    model = made.policy.load(seed=0).model.to(torch.bfloat16 if precision == "bf16-true" else torch.float32)
    optimizer, _ = made.optimizer.build(model, total_steps=1)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter) if parameter.requires_grad else None
    optimizer.step()
    state = [value for each in optimizer.state.values() for value in each.values()]
    assert optimizer_bytes(made.optimizer, outline.trainable) == sum(t.numel() * t.element_size() for t in state)
    assert bytes_of(outline.policy) == sum(p.numel() * p.element_size() for p in model.parameters())


def test_moments_in_8_bits_have_a_scale_for_256_numbers_and_small_tensors_keep_32_bits():
    large, small = (torch.nn.Parameter(torch.zeros(size, device="meta")) for size in (8192, 4095))
    assert optimizer_bytes(AdamW8bit(), [large]) == 2 * (8192 + 32 * 4)
    assert optimizer_bytes(AdamW8bit(), [small]) == 8 * 4095


class Saved:
    """Storages that autograd keeps, the model's own left out."""

    def __init__(self, model):
        self.own = {p.untyped_storage().data_ptr() for p in model.parameters()}
        self.seen = {}

    def __call__(self, tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in self.own:
            self.seen[storage.data_ptr()] = (storage.nbytes(), tensor)
        return tensor

    @property
    def bytes(self):
        return sum(size for size, _ in self.seen.values())


def kept(layers, tokens, rank, short, mixed, kind):
    """Bytes that a pass over so many tokens keeps."""
    import transformers

    config = getattr(transformers, f"{kind}Config")(
        vocab_size=96, hidden_size=128, intermediate_size=320, num_hidden_layers=layers, num_attention_heads=4,
        num_key_value_heads=2, head_dim=48, tie_word_embeddings=True, attn_implementation="sdpa",
    )  # fmt: skip
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="sdpa")
    model = LoRA(rank=rank).wrap(model) if rank else model
    model = model.to(torch.bfloat16) if short else model
    ids = torch.arange(tokens // 2)[None] % 90
    mask = torch.ones_like(ids, dtype=torch.bool)
    last = torch.zeros(1, 1, dtype=torch.long)
    given = SimpleNamespace(
        prompt_ids_BP=ids,
        prompt_mask_BP=mask,
        response_ids_BT=torch.cat([ids, last], 1),
        response_mask_BT=torch.cat([mask, last >= 0], 1),
    )
    row = row_of(given)
    saved = Saved(model)
    hooks = torch.autograd.graph.saved_tensors_hooks(saved, lambda tensor: tensor)
    with hooks, torch.autocast("cpu", torch.bfloat16, enabled=mixed):
        Decoder(model)(row.ids_S[None], row.positions_S[None], row.attention)
    held = 2 if short else 4
    return saved.bytes, layer_of(model, held, 2 if mixed else held)


@pytest.mark.parametrize("kind", ["Llama", "Qwen3"])
@pytest.mark.parametrize("rank", [0, 8], ids=["full", "lora"])
@pytest.mark.parametrize(("short", "mixed"), [(False, False), (False, True), (True, False)], ids=["32", "mixed", "16"])
def test_a_layer_keeps_for_a_token_what_autograd_saves(kind, rank, short, mixed):
    saved = {(L, S): kept(L, S, rank, short, mixed, kind) for L in (1, 2) for S in (64, 128)}
    layer = saved[1, 64][1]
    # Of one layer more and one token more: what does not grow with both drops out.
    grown = (saved[2, 128][0] - saved[2, 64][0]) - (saved[1, 128][0] - saved[1, 64][0])
    assert grown / 64 == layer.whole + layer.shared


def test_checkpointing_keeps_a_state_a_layer_and_one_layer_recomputed():
    layer = layer_of(Tiny().outline(), 4, 4)
    one = layer.whole + layer.shared
    assert activations(layer, 10, checkpointed=False) == 5 * 10 * one
    assert activations(layer, 10, checkpointed=True) == 4 * 10 * 128 * 4 + 2 * 10 * one


@pytest.mark.parametrize(
    ("given", "layout"),
    [
        ({}, Layout(1, 1, sharded=False)),
        ({"strategy": "ddp", "devices": 4}, Layout(4, 1, sharded=False)),
        ({"strategy": "fsdp", "devices": 4, "num_nodes": 2}, Layout(8, 1, sharded=True)),
        ({"strategy": "tensor_parallel", "devices": 4}, Layout(1, 4, sharded=False)),
        ({"strategy": "fsdp_tp", "devices": 8, "tensor_parallel": 2}, Layout(4, 2, sharded=True)),
    ],
    ids=["single", "ddp", "fsdp", "tp", "fsdp_tp"],
)
def test_a_layout_is_the_trainers(given, layout):
    assert layout_of(TrainerOptions(**given)) == layout


def test_the_parts_of_a_small_run_by_hand():
    made = setting(experiment(*SMALL), device="cpu", precision="32-true")
    memory = memory_of(made)
    weights = bytes_of(made.outline.policy)
    assert part(memory, "policy weights")[2:] == (weights, weights, weights)
    assert part(memory, "gradients").update == weights
    # 64 rows of 8 tokens and 8 prompts of 12, held twice; keys and values of 4 layers of 128 numbers of 4 bytes.
    assert part(memory, "keys and values").generation == (64 * 8 + 2 * 8 * 12) * 2 * 4 * 128 * 4
    names = [each.name for each in memory.parts]
    assert "decoding copy" not in names
    assert "weights in short" not in names
    assert "reference" not in names


def test_mixed_precision_adds_a_decoding_copy_and_what_autocast_casts():
    made = setting(experiment(*SMALL), precision="bf16-mixed")
    numbers = sum(p.numel() for p in made.outline.policy.parameters())
    memory = memory_of(made)
    assert part(memory, "decoding copy").update == 2 * numbers
    linear = 4 * (4 * 128 * 128 + 3 * 128 * 384)  # of the layers; the output layer is the embedding
    assert part(memory, "weights in short")[2:4] == (0, 2 * linear)


@pytest.mark.parametrize(
    ("overrides", "layout", "names"),
    [
        (["kl=k3_in_loss"], Layout(), {"reference"}),
        (["kl=k3_in_loss", "policy.lora={rank:4}"], Layout(), set()),
        (["algorithm=ppo", "critic=separate"], Layout(), {"critic weights", "critic activations"}),
        ([], Layout(2), set()),
        ([], Layout(2, 1, sharded=True), {"gathered layer", "whole copy"}),
        ([], Layout(1, 2), {"whole copy"}),
    ],
    ids=["reference", "lora-reference", "critic", "ddp", "fsdp", "tp"],
)
def test_what_an_experiment_adds(overrides, layout, names):
    plain = {each.name for each in memory_of(setting(experiment(*SMALL), precision="32-true")).parts}
    made = setting(experiment(*SMALL, *overrides), layout, precision="32-true")
    assert {each.name for each in memory_of(made).parts} - plain == names


def test_sharding_divides_weights_gradients_and_moments_and_no_copy():
    base = experiment(*SMALL)
    one, four = (memory_of(setting(base, layout)) for layout in (Layout(), Layout(4, 1, sharded=True)))
    for name in ("policy weights", "gradients", "optimizer state"):
        assert part(four, name).update == part(one, name).update / 4
    # What decodes is whole and in its own type, which one device copies and four gather.
    assert part(four, "whole copy").update == part(one, "decoding copy").update


def test_a_lag_generates_beside_the_update():
    lagging = experiment(*SMALL, "rollout.lag=1", "mismatch=sequence_truncate")
    cache = part(memory_of(setting(lagging, precision="32-true")), "keys and values")
    assert cache.generation == cache.update > 0


def test_micro_batches_hold_as_many_responses_as_their_tokens_allow():
    made = setting(experiment(*SMALL, "update.tokens_per_microbatch=100"))
    # 8 responses with their prompt are 76 tokens, a ninth needs the next prompt: 96, a tenth 104.
    assert (made.microbatch_responses, made.tokens(9)) == (9, 96)
    assert setting(experiment(*SMALL, "update.tokens_per_microbatch=10")).microbatch_responses == 1


def test_advice_is_estimated_and_sorted():
    made = experiment("rollout.prompts=64")
    large = setting(replace(made, policy=Published(name="Qwen3-4B")), memory=80e9)
    assert not memory_of(large).fits
    given = advice_for(large, ("fsdp",))
    assert all(advice.fits for advice in given)
    assert [advice.memory.peak for advice in given] == sorted(advice.memory.peak for advice in given)
    texts = [advice.overrides for advice in given]
    assert {"policy.lora={rank:16}", "trainer.precision=bf16-true", "trainer=fsdp trainer.devices=8"} <= set(texts)
    assert not any(text.startswith("trainer=tensor_parallel") for text in texts)


def test_where_no_single_change_fits_several_are_tried_together():
    made = experiment("rollout.prompts=64")
    large = setting(replace(made, policy=Published(name="SmolLM2-135M")), memory=3.5e9)
    *single, together = advice_for(large)
    assert not any(advice.fits for advice in single)
    assert together.fits
    assert len(together.overrides.split()) > 1


def test_the_margin_must_stay_free():
    made = setting(experiment(*SMALL), memory=1e9, plan=Plan(margin=0.9))
    memory = memory_of(made)
    assert memory.allowed == pytest.approx(1e8)
    assert not memory.fits


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    """A sequence classifier's folder, as far as a plan reads it, and its numbers."""
    from transformers import LlamaConfig, LlamaForSequenceClassification

    sizes = {"hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 1}
    model = LlamaForSequenceClassification(LlamaConfig(vocab_size=99, num_labels=1, **sizes))
    folder = tmp_path_factory.mktemp("classifier")
    model.save_pretrained(folder)
    return str(folder), sum(parameter.numel() for parameter in model.parameters())


def test_learned_reward_models_are_held_whole_by_every_device(classifier):
    path, numbers = classifier
    made = experiment(*SMALL[:2], *SMALL[3:], "reward_model=[classifier]", f"reward_model.classifier.path={path}")
    for dtype, width in (("float32", 4), ("bfloat16", 2)):
        term = replace(made.reward_model["classifier"], dtype=dtype)
        for layout in (Layout(), Layout(4, 1, sharded=True)):
            own = setting(replace(made, reward_model={"classifier": term}), layout, device="cuda")
            held = part(memory_of(own), "reward model")
            assert (held.generation, held.update) == (numbers * width, numbers * width)
            assert held.detail.startswith("classifier, 0.0 M in " + dtype)

    def placed(device):
        term = replace(made.reward_model["classifier"], device=device)
        memory = memory_of(setting(replace(made, reward_model={"rm": term}), Layout(4), device="cuda"))
        return sum(each.generation for each in memory.parts if each.name == "reward model")

    assert (placed("cpu"), placed("cuda"), placed("cuda:0")) == (0, 4 * numbers, 4 * 4 * numbers)


def test_an_implicit_reward_has_two_models_and_a_missing_one_is_told(tmp_path):
    for name, seed in (("dpo", 1), ("sft", 2)):
        Tiny().load(seed=seed).model.save_pretrained(tmp_path / name)
    numbers = sum(parameter.numel() for parameter in Tiny().load(seed=0).model.parameters())
    given = (f"reward_model.implicit.path={tmp_path}/dpo", f"reward_model.implicit.reference_path={tmp_path}/sft")
    made = experiment(*SMALL[:2], *SMALL[3:], "reward_model=[implicit]", *given)
    assert part(memory_of(setting(made)), "reward model").generation == 2 * 4 * numbers
    term = replace(made.reward_model["implicit"], reference_path="./none")
    with pytest.raises(UserError, match=r"reward_model.implicit.reference_path=./none: no such folder"):
        outline_of(replace(made, reward_model={"implicit": term}), "32-true")
