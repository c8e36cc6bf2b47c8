"""The whole copy of a divided policy: it generates and is saved as the policy itself would be."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
import torch
from builders import family_policy, gpt2_policy, prefix, record, tiny_policy
from processes_of_a_group import in_processes

from tpg.policies.base import LoRA
from tpg.policies.gathered import Gathered, whole

PREFIXES = [prefix([40, 41, 42], 3, max_tokens=12, row=0), prefix([50], 3, max_tokens=12, row=1)]
POLICIES = {
    "tied": lambda: tiny_policy(layers=2, hidden_size=32),
    "adapters": lambda: family_policy("qwen3", lora=LoRA(rank=4)),
}
MESHES = {"fsdp": (2, 1), "tensor_parallel": (1, 2)}


def moved(policy):
    """Its trained weights after a step that is the same wherever they are held."""
    with torch.no_grad():
        for weight in policy.parameters():
            if weight.requires_grad:
                weight.mul_(1.25)
    return policy


def generated(policy) -> list[list[int]]:
    from tpg.rollouts.native.engine import Native
    from tpg.rollouts.sampling import Sampling

    options = Native(max_prompt_tokens=8, max_response_tokens=12)
    return options.build(policy).generate(PREFIXES, Sampling()).response_ids_BT.tolist()


def saved(policy, folder: str) -> dict[str, torch.Tensor]:
    from transformers import AutoModelForCausalLM

    policy.save(Path(folder))
    return AutoModelForCausalLM.from_pretrained(folder, dtype="auto").state_dict()


def compared(mesh_name: str, name: str) -> dict[str, object]:
    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh

    from tpg.policies.sharding import shard

    mesh = init_device_mesh("cpu", MESHES[mesh_name], mesh_dim_names=("data_parallel", "tensor_parallel"))
    single, divided = POLICIES[name](), POLICIES[name]()
    gathered, short = Gathered(divided), Gathered(divided, torch.bfloat16)
    shard(divided, mesh)
    moved(single), moved(divided)
    stale = generated(gathered.policy)
    gathered.refresh(divided)
    short.refresh(divided)
    kept = short.own_types(divided, keep=dist.get_rank() == 0)
    trained = {n for n, weight in divided.named_parameters() if weight.requires_grad}
    found = {
        "stale": stale,
        "expected": generated(single),
        "given": generated(gathered.policy),
        "equal": all(
            torch.equal(one, other) and (one.dtype == torch.float32)
            for one, other in zip(single.parameters(), gathered.policy.parameters(), strict=True)
        ),
        "short": all(
            torch.equal(one.bfloat16(), other)
            for one, other in zip(single.parameters(), short.policy.parameters(), strict=True)
        ),
        "shared": sum(
            weight.to_local().numel() < weight.numel() for weight in divided.parameters() if hasattr(weight, "to_local")
        ),
        "trained": len(trained),
        "kept": kept is not None,
    }
    if kept is not None:
        with tempfile.TemporaryDirectory() as one, tempfile.TemporaryDirectory() as other:
            expected, given = saved(single, one), saved(kept, other)
        found["saved"] = expected.keys() == given.keys() and all(torch.equal(expected[n], given[n]) for n in expected)
    return found


def all_compared() -> dict[str, dict[str, object]]:
    return {f"{mesh}: {name}": compared(mesh, name) for mesh in MESHES for name in POLICIES}


@pytest.fixture(scope="module")
def results():
    return in_processes(2, all_compared)


@pytest.mark.parametrize("case", [f"{mesh}: {name}" for mesh in MESHES for name in POLICIES])
def test_the_copy_generates_and_is_saved_as_the_policy(results, case):
    for rank, found in enumerate(result[case] for result in results):
        assert found["given"] == found["expected"] != found["stale"]
        assert found["equal"]
        assert found["short"]
        assert found["shared"] > 10
        assert found["kept"] == (rank == 0)
        assert rank or found["saved"]


def test_a_copy_shares_nothing_with_an_undivided_policy():
    policy = tiny_policy(layers=1)
    gathered = Gathered(policy)
    places = {weight.data_ptr() for weight in policy.parameters()}
    assert not places & {weight.data_ptr() for weight in gathered.policy.parameters()}
    assert not any(weight.requires_grad for weight in gathered.policy.parameters())
    assert all(weight.requires_grad for weight in policy.parameters())
    before = generated(gathered.policy)
    moved(policy)
    assert generated(gathered.policy) == before != generated(policy)
    gathered.refresh(policy)
    assert generated(gathered.policy) == generated(policy)


@pytest.mark.parametrize("made", [tiny_policy, gpt2_policy], ids=["llama", "gpt2"])
def test_tied_weights_stay_tied_and_buffers_keep_their_type(made):
    policy = made()
    short = Gathered(policy, torch.bfloat16).policy
    assert short.model.get_input_embeddings().weight is short.model.get_output_embeddings().weight
    assert {weight.dtype for weight in short.parameters()} == {torch.bfloat16}
    assert [buffer.dtype for buffer in short.buffers()] == [buffer.dtype for buffer in policy.buffers()]
    assert short.end_ids == policy.end_ids


def test_frozen_weights_are_not_copied_again():
    policy = family_policy("qwen3", lora=LoRA(rank=2))
    gathered = Gathered(policy)
    with torch.no_grad():
        for weight in policy.parameters():
            weight.add_(1.0)
    gathered.refresh(policy)
    for (name, own), given in zip(gathered.policy.named_parameters(), policy.parameters(), strict=True):
        assert torch.equal(own, given) == ("lora_" in name)


def test_whole_is_the_tensor_itself_where_it_is_plain():
    tensor = record([[2]], [[3]]).rollout_logprobs_BT
    assert whole(tensor) is tensor
