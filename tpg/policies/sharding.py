"""Policies and critics divided among devices: layers by tensor parallelism, then all weights by FSDP2.

A mesh has the dimensions `data_parallel` and `tensor_parallel`; one of size 1 divides nothing. Within a layer attention
heads and the feed-forward's width are divided (Megatron-LM, arXiv 1909.08053); norms, embeddings and the output layer
are held, and computed alike, by all that share it. FSDP (arXiv 2304.11277) gathers a layer's weights for the time of
its pass and averages gradients over `data_parallel`.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    ParallelStyle,
    RowwiseParallel,
    SequenceParallel,
    parallelize_module,
)

from tpg.errors import UserError
from tpg.policies.attention import FAMILIES, base_model
from tpg.policies.base import Policy, PolicyOptions
from tpg.policies.critic import Critic, ModelCritic

DATA, TENSOR = "data_parallel", "tensor_parallel"

COLUMNS = frozenset({"q_proj", "k_proj", "v_proj", "gate_proj", "up_proj"})
"""Linear layers whose outputs are divided."""
ROWS = frozenset({"o_proj", "down_proj"})
"""Linear layers whose inputs are divided, and whose outputs are sums over devices."""
HEADS_OF_NORMS = {"qwen3": 2, "gemma3_text": 1}
"""By family the dimension of heads in what the norms of queries and keys are given."""
NORMS = frozenset({"q_norm", "k_norm"})


def shard(policy: Policy, mesh: DeviceMesh) -> None:
    """Divide a policy in place; its forward pass is `statistics`. Raises `UserError` where its layers do not divide."""
    model = base_model(policy.model)
    _shard_layers(model, mesh, "policy")
    policy.to(_device(mesh))
    if mesh[DATA].size() > 1:
        _gathered_for_passes(policy, mesh)
        register_fsdp_forward_method(policy, "statistics")


def shard_critic(critic: Critic, mesh: DeviceMesh) -> None:
    """Divide a critic in place; a head on the policy's states is divided by FSDP alone."""
    if isinstance(critic, ModelCritic):
        _shard_layers(critic.trunk, mesh, "critic")
    critic.to(_device(mesh))
    if mesh[DATA].size() > 1:
        if isinstance(critic, ModelCritic):  # in a group of its own: the head may be held in another type
            _gathered_for_passes(critic.trunk, mesh)
        _gathered_for_passes(critic, mesh)


def check_divides(options: PolicyOptions, size: int, key: str = "policy") -> None:
    """Raise `UserError` if the layers of a model cannot be divided among so many devices; reads no weights."""
    if size > 1:
        with torch.device("meta"):
            model = options.outlined_model()
        _check(base_model(model).config, size, key)


def _check(config: Any, size: int, key: str) -> None:
    if config.model_type not in FAMILIES:
        raise UserError(
            f"{key}: trainer.tensor_parallel={size} divides the layers of {', '.join(sorted(FAMILIES))}, not of"
            f" {config.model_type}; use trainer=fsdp"
        )
    names = ("num_attention_heads", "num_key_value_heads", "intermediate_size")
    widths = {name: getattr(config, name) for name in names}
    for name, width in widths.items():
        if width % size:
            fitting = [n for n in range(size - 1, 1, -1) if not any(width % n for width in widths.values())]
            fewer = f"trainer.tensor_parallel={fitting[0]} or " if fitting else ""
            raise UserError(
                f"trainer.tensor_parallel={size}: the {key}'s {name}={width} is no multiple of it; use"
                f" {fewer}trainer=fsdp"
            )


def _shard_layers(model: Any, mesh: DeviceMesh, key: str) -> None:
    """One layer after the other, so that a device never holds more than one whole."""
    data, tensor = mesh[DATA], mesh[TENSOR]
    if tensor.size() > 1:
        _check(model.config, tensor.size(), key)
    kinds = frozenset(getattr(model, "_no_split_modules", None) or ())
    layers = [module for module in model.modules() if type(module).__name__ in kinds]
    if not layers:
        raise UserError(f"{key}: {type(model).__name__} does not say what its layers are; use trainer=ddp")
    for layer in layers:
        layer.to(_device(mesh))
        if tensor.size() > 1:
            _divide(layer, tensor, HEADS_OF_NORMS.get(model.config.model_type))
        if data.size() > 1:
            _gathered_for_passes(layer, mesh)


def _gathered_for_passes(module: nn.Module, mesh: DeviceMesh) -> None:
    # The outermost too: its weights, left whole by a pass without gradient, would be those of before the next step.
    fully_shard(module, mesh=mesh[DATA], reshard_after_forward=True)


def _divide(layer: nn.Module, mesh: DeviceMesh, heads: int | None) -> None:
    """Tensor parallelism of one layer. Every parameter is trained if it was."""
    trained = {name: weight.requires_grad for name, weight in layer.named_parameters()}
    parallelize_module(layer, mesh, dict(_styles(layer, heads)))
    for name, weight in layer.named_parameters():
        weight.requires_grad_(trained[name])
        if isinstance(weight, DTensor) and weight.requires_grad:
            weight.register_hook(_placed(weight))


def _styles(layer: nn.Module, heads: int | None) -> Iterator[tuple[str, ParallelStyle]]:
    """How each of its modules is divided; of an adapter the factor whose inner side is the rank stays whole."""
    for name, module in layer.named_modules():
        kind = name.rsplit(".", 1)[-1]
        if kind in NORMS:
            assert heads is not None, name
            # Each device norms its own heads: the gradients of the weight that they share are to be summed.
            yield name, SequenceParallel(sequence_dim=heads, use_local_output=True)
        if kind not in COLUMNS | ROWS:
            continue
        style = ColwiseParallel if kind in COLUMNS else RowwiseParallel
        if not hasattr(module, "base_layer"):
            yield name, style()
            continue
        yield f"{name}.base_layer", style()
        factors = "lora_B" if kind in COLUMNS else "lora_A"
        for adapter in getattr(module, factors):
            yield f"{name}.{factors}.{adapter}", style()


def _placed(weight: DTensor) -> Any:
    """Gradients placed as the weight: one that is a sum over devices is summed at once."""
    placements = weight.placements

    def hook(gradient: Tensor) -> Tensor:
        assert isinstance(gradient, DTensor)
        return gradient if gradient.placements == placements else gradient.redistribute(placements=placements)

    return hook


def _device(mesh: DeviceMesh) -> torch.device:
    """This process's."""
    if mesh.device_type == "cpu":
        return torch.device("cpu")
    return torch.device(mesh.device_type, torch.get_device_module(mesh.device_type).current_device())
