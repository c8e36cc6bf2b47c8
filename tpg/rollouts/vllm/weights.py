"""A policy's weights as vLLM takes them."""

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tpg.policies.attention import base_model
from tpg.policies.base import Policy

SHAPE = (
    *("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers"),
    *("num_attention_heads", "num_key_value_heads"),
)


def merged_weights(policy: Policy) -> Iterator[tuple[str, Tensor]]:
    """Names and values as in a checkpoint of its own, one at a time; adapters are merged in.

    The output layer comes too where it shares the embedding's weight: see `save_config`.
    """
    base = base_model(policy.model)
    adapted = {name: module for name, module in base.named_modules() if hasattr(module, "get_delta_weight")}
    for name, value in base.state_dict().items():
        owner, _, leaf = name.rpartition(".")
        adapter = adapted.get(owner.removesuffix(".base_layer"))
        if adapter is not None and owner.endswith(".base_layer"):
            if leaf == "weight" and not adapter.merged:
                for active in adapter.active_adapters:
                    value = value + adapter.get_delta_weight(active).to(value.dtype)
        elif any(owner.startswith(f"{place}.") for place in adapted):
            continue  # the adapter's own
        yield name.replace(".base_layer.", "."), value


def save_config(policy: Policy, folder: Path) -> None:
    """Write the model's config for vLLM, with an output layer of its own.

    vLLM would leave a shared output layer as it was when weights are replaced.
    """
    base = base_model(policy.model)
    config = copy.deepcopy(base.config)
    config.architectures = [type(base).__name__]
    for part in {id(part): part for part in (config, config.get_text_config())}.values():
        part.tie_word_embeddings = False
    config.save_pretrained(folder)


def shape(config: Any) -> dict[str, int]:
    """What must agree for weights to fit, of a model's config."""
    text = config.get_text_config()
    return {name: getattr(text, name) for name in SHAPE if getattr(text, name, None) is not None}


def signature(policy: Policy) -> tuple[Any, ...]:
    """Differs whenever a weight has changed: by where the weights are, how often written, and their norms."""
    parameters = [parameter.detach() for parameter in policy.model.parameters()]
    norms = torch.stack([norm.double() for norm in torch._foreach_norm(parameters)])
    places = [(parameter.data_ptr(), parameter._version) for parameter in policy.model.parameters()]
    return (*places, *norms.tolist())
