"""A policy, its reference and a critic divided among four processes, against one process that holds them whole."""

from __future__ import annotations

import copy

import pytest
import torch
from builders import family_policy, gpt2_policy, record
from processes_of_a_group import in_processes

from tpg.errors import UserError
from tpg.policies.base import LoRA, Reference
from tpg.policies.critic import SeparateCritic, ValueHead
from tpg.policies.gathered import whole
from tpg.policies.sharding import check_divides
from tpg.policies.tiny import Tiny

LONG = [7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25]
PROMPTS = [[40], LONG, [40], LONG, [5, 6], LONG, [40, 41, 42], [40, 41, 42]]
RESPONSES = [[30, 31, 32, 1], [20] * 9, [4, 5], [1], [9, 8, 7], [60, 61], [10, 11, 12, 13, 14, 15, 16], [11] * 7]
TRAJECTORIES = record(PROMPTS, RESPONSES)
TEMPERATURE = 0.9

HEADS = {"num_attention_heads": 8, "num_key_value_heads": 4}
BIASED = {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True}
POLICIES = {
    "llama, tied, checkpointed": lambda: family_policy("llama", gradient_checkpointing=True, **BIASED, **HEADS),
    "qwen3": lambda: family_policy("qwen3", **HEADS),
    "qwen3, adapters": lambda: family_policy("qwen3", lora=LoRA(rank=4), **HEADS),
    "gemma3": lambda: family_policy("gemma3_text", **HEADS),
    "qwen2": lambda: family_policy("qwen2", **HEADS),
    "gpt2": gpt2_policy,
}
CRITICS = {
    "llama, tied, checkpointed": ValueHead(lr=0.1, detached=False),
    "qwen3": SeparateCritic(lr=0.1),
    "qwen3, adapters": SeparateCritic(lr=0.1),
    "gemma3": ValueHead(lr=0.1),
    "qwen2": ValueHead(lr=0.1, detached=False),
    "gpt2": ValueHead(lr=0.1),
}
MESHES = {"fsdp": (4, 1), "tensor_parallel": (1, 4), "fsdp_tp": (2, 2)}
CASES = [
    ("fsdp", "llama, tied, checkpointed"),
    ("fsdp", "gpt2"),
    ("tensor_parallel", "qwen3"),
    ("tensor_parallel", "gemma3"),
    ("fsdp_tp", "llama, tied, checkpointed"),
    ("fsdp_tp", "qwen3, adapters"),
]
MORE_CASES = [
    ("fsdp", "qwen3, adapters"),
    ("tensor_parallel", "llama, tied, checkpointed"),
    ("tensor_parallel", "qwen3, adapters"),
    ("fsdp_tp", "qwen3"),
    ("fsdp_tp", "qwen2"),
]


class Trained:
    """A policy with its critic and its reference, and a step on some of the trajectories."""

    def __init__(self, name: str, mesh=None) -> None:
        from tpg.policies.sharding import shard, shard_critic
        from tpg.training.optimizers import Optimizer

        self.policy = POLICIES[name]()
        self.critic = CRITICS[name].build(self.policy)
        torch.nn.init.constant_(self.critic.head.weight, 0.1)
        self.reference = Reference(self.policy)
        self.replicas, self.replica = 1, 0
        if mesh is not None:
            shard(self.policy, mesh)
            shard_critic(self.critic, mesh)
            if self.reference.frozen_copy is not None:
                shard(self.reference.frozen_copy, mesh)
            self.replicas, self.replica = mesh["data_parallel"].size(), mesh["data_parallel"].get_local_rank()
        self.optimizer, _ = Optimizer(lr=0.1, eps=1e-2).build(self.policy, 4, [(self.critic, 0.1)])

    def rows(self) -> torch.Tensor:
        """Those of this replica: as many prompts and responses of every length as there are."""
        return torch.arange(self.replica, len(TRAJECTORIES), self.replicas)

    def passes(self, layout: str | None) -> list[torch.Tensor]:
        part = TRAJECTORIES.select(self.rows())
        found = self.policy.statistics(part, TEMPERATURE, distribution=True, hidden=True, layout=layout)
        return [found.logprobs, found.entropy, self.critic(part, found.hidden if self.critic.reads_policy else None)]

    def accumulate(self, layout: str | None) -> list[torch.Tensor]:
        """A backward pass, as Lightning does it: the loss of a replica times their number."""
        found = self.passes(layout)
        slopes_BT = torch.linspace(-1, 2, 72).reshape(8, 9)[self.rows()] / 100
        total_BT = found[0] + 0.3 * found[1] + (found[2] - 1.0).square()
        ((total_BT * slopes_BT).sum() * self.replicas).backward()
        return [values.detach() for values in found]

    def weights(self) -> dict[str, torch.Tensor]:
        parts = {"policy": self.policy, "critic": self.critic}
        return {
            f"{part} {name}": weight for part, module in parts.items() for name, weight in module.named_parameters()
        }


def furthest(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    assert one.keys() == other.keys()
    return max(float((one[name] - other[name]).abs().max()) for name in one)


def moments(state: dict) -> dict[str, torch.Tensor]:
    return {f"{index} {name}": value for index, values in state["state"].items() for name, value in values.items()}


def measured(single: Trained, divided: Trained) -> dict[str, float]:
    """How far the two are apart, in everything that a step computes; `moved` is how far the step goes."""
    from tpg.training.parallel.gradients import clip, total_norm
    from tpg.training.parallel.optimizer_state import take_state, whole_state

    rows, found = divided.rows(), {}

    def apart(expected: list[torch.Tensor], given: list[torch.Tensor]) -> float:
        return max(float((one[rows] - other).abs().max()) for one, other in zip(expected, given, strict=True))

    # The reference's pass comes first: without its adapters nothing of the policy is trained.
    expected = single.reference.logprobs(TRAJECTORIES, TEMPERATURE)
    found["reference"] = apart([expected], [divided.reference.logprobs(TRAJECTORIES.select(rows), TEMPERATURE)])
    with torch.no_grad():
        expected, given = single.passes(None), divided.passes(None)
    found["values"] = apart(expected, given)
    layouts = ["shared", "padded"] if single.policy.shares_prompts(40) else ["padded", "padded"]
    for layout in layouts:
        found[f"values with gradient, {layout}"] = apart(single.accumulate(layout), divided.accumulate(layout))
    gradients = [
        {name: whole(weight.grad) for name, weight in one.weights().items() if weight.grad is not None}
        for one in (single, divided)
    ]
    found["gradients"] = furthest(*gradients)
    before = {name: weight.detach().clone() for name, weight in single.weights().items()}
    for part, (group, own) in enumerate(
        zip(single.optimizer.param_groups, divided.optimizer.param_groups, strict=True)
    ):
        found[f"norm {part}"] = float(total_norm(own["params"]) - total_norm(group["params"]))
        clip(own["params"], 0.1)
        torch.nn.utils.clip_grad_norm_(group["params"], 0.1)
        found[f"clipped norm {part}"] = float(total_norm(own["params"])) - 0.1
    single.optimizer.step()
    divided.optimizer.step()
    stepped = {name: weight.detach() for name, weight in single.weights().items()}
    found["weights"] = furthest(stepped, {name: whole(weight.detach()) for name, weight in divided.weights().items()})
    expected = moments(single.optimizer.state_dict())
    found["moments"] = furthest(expected, moments(whole_state(divided.optimizer, keep=True)))
    assert not whole_state(divided.optimizer, keep=False)["state"]
    # A single process's state with other numbers, in parts and together again.
    other = copy.deepcopy(single.optimizer.state_dict())
    for values in other["state"].values():
        values["exp_avg"].add_(1.0)
    take_state(divided.optimizer, other)
    found["moments taken"] = furthest(moments(other), moments(whole_state(divided.optimizer, keep=True)))
    # What a pass without gradient has gathered is not used again.
    with torch.no_grad():
        found["values after the step"] = apart(single.passes(None), divided.passes(None))
    return {**found, "moved": -furthest(before, stepped)}


def in_bfloat16(name: str, mesh) -> float:
    """How far the log-probabilities are apart in mixed precision."""
    single, divided = Trained(name), Trained(name, mesh)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        expected, given = single.passes(None)[0][divided.rows()], divided.passes(None)[0]
    return float((expected - given).abs().max())


def compared(cases: list[tuple[str, str]]) -> dict[str, dict[str, float]]:
    """On every process."""
    from torch.distributed.device_mesh import init_device_mesh

    made = {
        mesh: init_device_mesh("cpu", shape, mesh_dim_names=("data_parallel", "tensor_parallel"))
        for mesh, shape in MESHES.items()
    }
    found = {f"{mesh}: {name}": measured(Trained(name), Trained(name, made[mesh])) for mesh, name in cases}
    return {**found, "mixed precision": {"difference": in_bfloat16("qwen3", made["fsdp_tp"])}}


def assert_near(found: dict[str, float]) -> None:
    assert found["moved"] < -0.01
    for quantity, difference in found.items():
        assert quantity == "moved" or abs(difference) < 1e-5, quantity


@pytest.fixture(scope="module")
def differences():
    return in_processes(4, compared, CASES)


@pytest.mark.long
@pytest.mark.parametrize("case", [f"{mesh}: {name}" for mesh, name in CASES])
def test_it_is_the_single_process(differences, case):
    for rank in differences:
        assert_near(rank[case])


@pytest.mark.long
def test_mixed_precision_is_near(differences):
    assert all(0 < rank["mixed precision"]["difference"] < 0.3 for rank in differences)


@pytest.mark.long
def test_more_of_them_are_the_single_process():
    for rank in in_processes(4, compared, MORE_CASES):
        for mesh, name in MORE_CASES:
            assert_near(rank[f"{mesh}: {name}"])


def test_layers_that_do_not_divide_are_refused_before_anything_is_loaded(monkeypatch):
    check_divides(Tiny(hidden_size=48, heads=6), 3)
    check_divides(Tiny(hidden_size=48, heads=6), 1)
    with pytest.raises(UserError) as refused:
        check_divides(Tiny(hidden_size=48, heads=6), 4)
    assert str(refused.value) == (
        "trainer.tensor_parallel=4: the policy's num_attention_heads=6 is no multiple of it; use"
        " trainer.tensor_parallel=3 or trainer=fsdp"
    )
    with pytest.raises(UserError, match=r"num_attention_heads=3 is no multiple of it; use trainer=fsdp$"):
        check_divides(Tiny(hidden_size=48, heads=3), 2)
    made = []
    monkeypatch.setattr(Tiny, "load_model_and_tokenizer", lambda self, seed: made.append(gpt2_policy().model) or made)
    with pytest.raises(UserError, match=r"^policy: trainer.tensor_parallel=2 divides the layers of gemma, .*gpt2"):
        check_divides(Tiny(), 2)
