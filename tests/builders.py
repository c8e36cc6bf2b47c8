"""Trajectories and policies for tests, from literal lists."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

from tpg.policies.base import LoRA, Policy
from tpg.policies.tiny import Tiny, character_tokenizer
from tpg.randomness import key
from tpg.rollouts.engine import Prefix
from tpg.trajectories import FinishReason, Trajectories


def record(prompts: list[list[int]], responses: list[list[int]], *, pad: int = 0, **fields: Any) -> Trajectories:
    """Unscored trajectories with these tokens, each prompt a group of its own unless `row_B` says otherwise."""
    count = len(responses)
    prompt_width = max(map(len, prompts))
    response_width = max(map(len, responses))
    prompt_mask_BP = torch.tensor([[False] * (prompt_width - len(p)) + [True] * len(p) for p in prompts])
    response_mask_BT = torch.tensor([[True] * len(r) + [False] * (response_width - len(r)) for r in responses])
    values: dict[str, Any] = {
        "prompt_ids_BP": torch.tensor([[pad] * (prompt_width - len(p)) + p for p in prompts]),
        "prompt_mask_BP": prompt_mask_BP,
        "response_ids_BT": torch.tensor([r + [pad] * (response_width - len(r)) for r in responses]),
        "response_mask_BT": response_mask_BT,
        "action_mask_BT": response_mask_BT,
        "rollout_logprobs_BT": torch.zeros(count, response_width),
        "row_B": torch.arange(count),
        "draw_B": torch.zeros(count, dtype=torch.long),
        "response_index_B": torch.zeros(count, dtype=torch.long),
        "finish_reason_B": torch.full((count,), int(FinishReason.STOP)),
        "parent_B": torch.full((count,), -1),
        "position_B": torch.zeros(count, dtype=torch.long),
        "version_B": torch.zeros(count, dtype=torch.long),
    }
    return Trajectories(**(values | fields))


def scored(
    rewards: list[float],
    *,
    rows: list[int] | None = None,
    draws: list[int] | None = None,
    unscored: tuple[int, ...] = (),
    lengths: list[int] | None = None,
    dtype: torch.dtype = torch.float64,
    **fields: Any,
) -> Trajectories:
    """Trajectories with these rewards: one group of one-token responses unless told otherwise."""
    count = len(rewards)
    values = {
        "row_B": torch.tensor(rows or [0] * count),
        "draw_B": torch.tensor(draws or [0] * count),
        "rewards_B": torch.tensor(rewards, dtype=dtype),
        "scored_B": torch.tensor([i not in unscored for i in range(count)]),
    }
    responses = [[2] * length for length in lengths or [1] * count]
    return record([[2]] * count, responses, **(values | fields))


def widened(trajectories: Trajectories, prompt: int = 2, response: int = 3) -> Trajectories:
    """The same trajectories with columns of rubbish that the masks hide."""
    rubbish: dict[torch.dtype, Any] = {torch.bool: False, torch.int64: 5}
    fields = {}
    for name, tensor in vars(trajectories).items():
        if not isinstance(tensor, Tensor) or not name.endswith(("_BP", "_BT")):
            continue
        value = rubbish.get(tensor.dtype, float("nan"))
        columns = tensor.new_full((len(tensor), prompt if name.endswith("_BP") else response), value)
        fields[name] = torch.cat([columns, tensor] if name.endswith("_BP") else [tensor, columns], dim=-1)
    return trajectories.replace(**fields)


def tiny_policy(seed: int = 0, scale: float = 3.0, **options: Any) -> Policy:
    """`policy=tiny` with larger weights, so that tokens are far from equally likely and responses vary in length."""
    policy = Tiny(**options).load(seed)
    with torch.no_grad():
        for name, weight in policy.model.named_parameters():
            if "lora_" not in name:
                weight.mul_(scale)
    return policy


def in_double_precision(policy: Policy) -> Policy:
    """The policy in float64, its norms too, which transformers computes in float32 whatever they are given."""
    for module in policy.double().modules():
        if type(module).__name__.endswith("RMSNorm"):
            module.__class__ = _exact(type(module))
    return policy


@functools.cache
def _exact(norm: type[nn.Module]) -> type[nn.Module]:
    gemma = norm.__name__.startswith("Gemma")

    def forward(self: Any, states: Tensor) -> Tensor:
        eps = self.eps if hasattr(self, "eps") else self.variance_epsilon
        return nn.functional.rms_norm(states, states.shape[-1:], 1 + self.weight if gemma else self.weight, eps)

    return type(norm.__name__, (norm,), {"forward": forward})


def gpt2_policy(**options: Any) -> Policy:
    """A small GPT-2 with the tiny policy's tokens: its learned positions are absolute, unlike Llama's."""
    config = GPT2Config(
        vocab_size=99, n_embd=32, n_layer=2, n_head=2, n_positions=64, eos_token_id=1, bos_token_id=None
    )
    config.update({"initializer_range": 0.2, "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0} | options)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Policy(GPT2LMHeadModel(config), character_tokenizer())


def family_policy(
    name: str, *, lora: LoRA | None = None, gradient_checkpointing: bool = False, **options: Any
) -> Policy:
    """A small model of a family (`model_type`) with two heads to each key-value head, and weights far from zero."""
    sizes = {"vocab_size": 99, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "head_dim": 16}
    sizes |= {"num_attention_heads": 4, "num_key_value_heads": 2, "pad_token_id": 0, "eos_token_id": 1}
    config = AutoConfig.for_model(name, **(sizes | {"bos_token_id": None, "max_position_embeddings": 64} | options))
    config._attn_implementation = "sdpa"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config)
        if gradient_checkpointing:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        if lora is not None:
            model = lora.wrap(model)
        for parameter in model.parameters():
            nn.init.normal_(parameter, std=0.3)
    return Policy(model, character_tokenizer(), gradient_checkpointing=gradient_checkpointing)


def prefix(prompt: list[int], count: int, max_tokens: int = 40, row: int = 0, **fields: Any) -> Prefix:
    """A prompt to be answered `count` times, with keys that are a function of its row."""
    keys = tuple(key(row, i) for i in range(count))
    return Prefix(tuple(prompt), max_tokens, keys, row, **fields)
