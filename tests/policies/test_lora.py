import pytest
import torch
from builders import prefix, record, tiny_policy
from transformers import AutoModelForCausalLM

from tpg.policies.base import LoRA, Policy, Reference
from tpg.rollouts.sampling import Sampling
from tpg.rollouts.transformers import Transformers

TRAJECTORIES = record([[40], [12, 13, 14]], [[30, 31, 32, 1], [60, 61]])
PREFIXES = [prefix([40, 41, 42], 3, row=0), prefix([50], 3, row=1)]


def adapted(seed: int = 0) -> Policy:
    """The tiny policy with adapters that change its output."""
    policy = tiny_policy(lora=LoRA(rank=4))
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, weight in policy.model.named_parameters():
            if "lora_B" in name:
                weight.normal_(std=0.05)
    return policy


def logprobs(policy: Policy) -> torch.Tensor:
    with torch.no_grad():
        return policy.statistics(TRAJECTORIES, 1.0).logprobs


def test_fresh_adapters_change_nothing():
    torch.testing.assert_close(logprobs(tiny_policy(lora=LoRA(rank=4))), logprobs(tiny_policy()), rtol=0, atol=1e-5)


def test_fresh_adapters_are_a_function_of_the_seed():
    def matrices(seed):
        parameters = tiny_policy(seed, lora=LoRA(rank=4)).model.named_parameters()
        return torch.cat([weight.flatten() for name, weight in parameters if "lora_A" in name])

    assert torch.equal(matrices(3), matrices(3))
    assert not torch.equal(matrices(3), matrices(4))


def test_rollouts_use_the_adapted_weights():
    policy = adapted()
    base = Transformers().build(tiny_policy()).generate(PREFIXES, Sampling())
    rollout = Transformers().build(policy).generate(PREFIXES, Sampling())
    assert rollout.response_ids_BT.tolist() != base.response_ids_BT.tolist()
    with torch.no_grad():
        trained = policy.statistics(rollout, 1.0).logprobs
    torch.testing.assert_close(rollout.rollout_logprobs_BT, trained, rtol=0, atol=1e-4)
    assert (Reference(policy).logprobs(rollout, 1.0) - trained).abs().max() > 0.1


def test_the_reference_is_the_policy_without_adapters():
    policy = adapted()
    reference = Reference(policy)
    with_adapters = logprobs(policy)
    torch.testing.assert_close(reference.logprobs(TRAJECTORIES, 1.0), logprobs(tiny_policy()), rtol=0, atol=1e-5)
    assert (with_adapters - logprobs(tiny_policy())).abs().max() > 0.1
    assert torch.equal(logprobs(policy), with_adapters)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_only_the_adapters_are_trained(checkpointing):
    policy = tiny_policy(lora=LoRA(rank=4), gradient_checkpointing=checkpointing)
    reference_logprobs = Reference(policy).logprobs(TRAJECTORIES, 1.0)
    before = {name: weight.detach().clone() for name, weight in policy.named_parameters()}
    optimizer = torch.optim.SGD([weight for weight in policy.parameters() if weight.requires_grad], lr=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        policy.statistics(TRAJECTORIES, 1.0).logprobs.sum().backward()
        optimizer.step()
    changed = {name for name, weight in policy.named_parameters() if not torch.equal(weight, before[name])}
    # Query, key, value, output, gate, up and down, in four layers, two matrices each.
    assert len(changed) == 56
    assert all("lora_A" in name or "lora_B" in name for name in changed)
    assert torch.equal(Reference(policy).logprobs(TRAJECTORIES, 1.0), reference_logprobs)


def test_target_modules():
    policy = tiny_policy(lora=LoRA(rank=2, target_modules=["q_proj", "v_proj"]))
    trained = {name.split(".lora_")[0].rsplit(".")[-1] for name, w in policy.named_parameters() if w.requires_grad}
    assert trained == {"q_proj", "v_proj"}


def test_saving_merges_the_adapters(tmp_path):
    policy = adapted()
    before = logprobs(policy)
    policy.save(tmp_path)
    opened = Policy(AutoModelForCausalLM.from_pretrained(tmp_path), policy.tokenizer)
    torch.testing.assert_close(logprobs(opened), before, rtol=0, atol=1e-4)
    assert not any("lora" in name for name, _ in opened.named_parameters())
    # The policy itself goes on with its adapters.
    assert torch.equal(logprobs(policy), before)
    assert sum(weight.requires_grad for weight in policy.parameters()) == 56


def test_a_rollout_leaves_no_trace_in_what_is_saved(tmp_path):
    policy = adapted()
    policy.model.generation_config.repetition_penalty = 1.25
    Transformers().build(policy).generate(PREFIXES, Sampling())
    policy.save(tmp_path)
    saved = AutoModelForCausalLM.from_pretrained(tmp_path).generation_config
    assert saved.repetition_penalty == 1.25
    assert saved.max_new_tokens is None
    assert saved.eos_token_id == 1
