"""The trainer's log-probabilities against a reference that runs one unpadded sequence at a time."""

import pytest
import torch
from builders import gpt2_policy, record, tiny_policy, widened
from torch import nn

from tpg.policies.base import Policy, Reference
from tpg.policies.tiny import Tiny

PAD, EOS = 0, 1

# The prompts hold pads and ends of their own, and so do the responses; the last one ends without an end token.
PROMPTS = [[40], [PAD, 12, EOS, 13, PAD], [50, 51, 52], [7, 8, 9, 10]]
RESPONSES = [[30, 31, 32, EOS], [EOS], [PAD, 41, PAD, EOS, 42, PAD], [60, 61]]


@pytest.fixture(scope="module", params=[tiny_policy, gpt2_policy], ids=["llama", "gpt2"])
def policy(request) -> Policy:
    policy = request.param()
    policy.model.double()
    return policy


def naive(
    policy: Policy, prompt: list[int], response: list[int], temperature: float
) -> torch.distributions.Categorical:
    """The distribution of every token of the response."""
    logits = policy.model(input_ids=torch.tensor([prompt + response])).logits[0]
    return torch.distributions.Categorical(logits=logits[len(prompt) - 1 : -1] / temperature)


@pytest.mark.parametrize("layout", ["padded", "packed"])
@pytest.mark.parametrize("temperature", [0.6, 1.0, 1.7])
def test_statistics_against_full_logits(policy, temperature, layout):
    statistics = policy.statistics(record(PROMPTS, RESPONSES), temperature, distribution=True, layout=layout)
    for i, (prompt, response) in enumerate(zip(PROMPTS, RESPONSES, strict=True)):
        expected = naive(policy, prompt, response, temperature)
        rows = [
            (statistics.logprobs, expected.log_prob(torch.tensor(response))),
            (statistics.entropy, expected.entropy()),
            (statistics.sum_squared_probs, expected.probs.square().sum(-1)),
        ]
        for values_BT, numbers in rows:
            torch.testing.assert_close(values_BT[i, : len(response)], numbers, rtol=0, atol=1e-5)
            assert not values_BT[i, len(response) :].any()


@pytest.mark.parametrize("layout", ["padded", "packed"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_statistics_in_single_precision(attention, layout):
    policy = tiny_policy(attention=attention)
    logprobs_BT = policy.statistics(record(PROMPTS, RESPONSES), 1.0, layout=layout).logprobs
    assert logprobs_BT.dtype == torch.float32
    for i, (prompt, response) in enumerate(zip(PROMPTS, RESPONSES, strict=True)):
        expected = naive(policy, prompt, response, 1.0).log_prob(torch.tensor(response))
        torch.testing.assert_close(logprobs_BT[i, : len(response)], expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("layout", ["padded", "packed"])
def test_padding_changes_nothing(policy, layout):
    trajectories = record(PROMPTS, RESPONSES)
    wide = policy.statistics(widened(trajectories, prompt=4, response=5), 0.8, layout=layout).logprobs
    narrow = policy.statistics(trajectories, 0.8, layout=layout).logprobs
    torch.testing.assert_close(wide[:, :6], narrow, rtol=0, atol=1e-6)
    assert not wide[:, 6:].any()


@pytest.mark.parametrize("layout", ["padded", "packed"])
def test_the_batch_changes_nothing(policy, layout):
    trajectories = record(PROMPTS, RESPONSES)
    together = policy.statistics(trajectories, 1.0, layout=layout).logprobs
    for i in range(4):
        alone = policy.statistics(trajectories.select(torch.tensor([i])).trimmed(), 1.0, layout=layout).logprobs
        torch.testing.assert_close(together[i : i + 1, : alone.shape[1]], alone, rtol=0, atol=1e-6)


def gradients(policy: Policy, **options) -> list[torch.Tensor]:
    policy.zero_grad()
    logprobs_BT = policy.statistics(record(PROMPTS, RESPONSES), 0.9, **options).logprobs
    (logprobs_BT * torch.linspace(-1, 2, 24).reshape(4, 6)).sum().backward()
    return [weight.grad.clone() for weight in policy.parameters()]


def assert_close(found: list[torch.Tensor], expected: list[torch.Tensor]) -> None:
    assert len(found) == len(expected) > 20
    for one, other in zip(found, expected, strict=True):
        assert other.abs().max() > 1e-3
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_both_layouts_have_the_same_gradients(policy):
    assert_close(gradients(policy, layout="packed"), gradients(policy, layout="padded"))


@pytest.mark.parametrize("layout", ["padded", "packed"])
def test_gradient_checkpointing_changes_no_gradient(layout):
    checkpointed = tiny_policy(gradient_checkpointing=True)
    assert_close(gradients(checkpointed, layout=layout), gradients(tiny_policy(), layout=layout))
    assert not checkpointed.model.training


def test_gradient_checkpointing_recomputes():
    def saved_bytes(policy: Policy) -> int:
        total = 0

        def count(tensor: torch.Tensor) -> torch.Tensor:
            nonlocal total
            total += tensor.nbytes
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            policy.statistics(record(PROMPTS, RESPONSES), 1.0)
        return total

    assert saved_bytes(tiny_policy(gradient_checkpointing=True)) < 0.7 * saved_bytes(tiny_policy())


@pytest.mark.parametrize("checkpointing", [False, True])
def test_dropout_stays_off(checkpointing):
    policy = gpt2_policy(resid_pdrop=0.5, embd_pdrop=0.5, attn_pdrop=0.5)
    if checkpointing:
        policy.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        policy.gradient_checkpointing = True
    trained = policy.statistics(record(PROMPTS, RESPONSES), 1.0).logprobs
    with torch.no_grad():
        scored = policy.statistics(record(PROMPTS, RESPONSES), 1.0).logprobs
    assert trained.requires_grad
    torch.testing.assert_close(trained.detach(), scored, rtol=0, atol=1e-5)


def test_the_seed_makes_the_weights():
    one, same, other = (nn.utils.parameters_to_vector(Tiny().load(seed).parameters()) for seed in (3, 3, 4))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


def test_loading_leaves_the_global_generator_alone():
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    Tiny().load(0)
    assert torch.rand(1) == expected


def test_what_ends_and_pads_a_response():
    policy = Tiny().load(0)
    assert policy.end_ids == {EOS}
    assert policy.pad_id == PAD
    assert policy.max_positions == 512
    policy.model.generation_config.eos_token_id = [EOS, 20]
    assert policy.end_ids == {EOS, 20}
    policy.tokenizer.pad_token = None
    assert policy.pad_id == EOS


def test_decode_skips_special_tokens():
    policy = Tiny().load(0)
    ids = policy.tokenizer("a b\n", add_special_tokens=False)["input_ids"]
    assert policy.decode([PAD, *ids, EOS]) == "a b\n"


def test_the_reference_stays_where_the_policy_was():
    policy = tiny_policy()
    trajectories = record(PROMPTS, RESPONSES)
    with torch.no_grad():
        before = policy.statistics(trajectories, 0.7).logprobs
    reference = Reference(policy)
    with torch.no_grad():
        for weight in policy.parameters():
            weight.add_(0.05 * torch.sin(torch.arange(weight.numel()).reshape(weight.shape)))
        after = policy.statistics(trajectories, 0.7).logprobs
    logprobs_BT = reference.logprobs(trajectories, 0.7)
    assert (after - before).abs().max() > 0.1
    assert torch.equal(logprobs_BT, before)
    assert not logprobs_BT.requires_grad
    assert not any(weight.requires_grad for weight in reference._frozen.parameters())
    assert all(weight.requires_grad for weight in policy.parameters())
