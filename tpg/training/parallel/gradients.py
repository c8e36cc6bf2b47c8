"""The norm of gradients that may be divided among processes, and clipping by it."""

from collections.abc import Iterable

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor
from torch.nn.utils import clip_grad_norm_, get_total_norm


@torch.no_grad()
def total_norm(parameters: Iterable[Tensor]) -> Tensor:
    """The Euclidean norm of all gradients as one vector, however they are divided; where they are not, torch's.

    Every process that holds a part calls it; a part that several hold counts once.
    """
    parameters = list(parameters)
    if not _divided(parameters):
        return get_total_norm([parameter.grad for parameter in parameters if parameter.grad is not None])
    alike: dict[tuple[str, ...], list[Tensor]] = {}
    groups: dict[str, dist.ProcessGroup] = {}
    for parameter in parameters:
        own = _groups(parameter)
        groups |= own
        kept = alike.setdefault(tuple(own), [])
        if parameter.grad is not None:
            kept.append(_local(parameter))
    dtype = torch.promote_types(parameters[0].dtype, torch.float32)
    total = torch.zeros((), dtype=dtype, device=parameters[0].device)
    for names, gradients in alike.items():
        squares = torch.zeros_like(total)
        if gradients:
            squares += torch.stack(torch._foreach_norm(gradients, dtype=dtype)).square().sum()
        for name in names:
            dist.all_reduce(squares, group=groups[name])
        total += squares
    return total.sqrt()


@torch.no_grad()
def clip(parameters: Iterable[Tensor], max_norm: float) -> Tensor:
    """Scale the gradients in place so that their norm is at most this, as torch's clip_grad_norm_; the norm before."""
    parameters = list(parameters)
    if not _divided(parameters):
        return clip_grad_norm_(parameters, max_norm)
    norm = total_norm(parameters)
    gradients = [_local(parameter) for parameter in parameters if parameter.grad is not None]
    if gradients:
        torch._foreach_mul_(gradients, (max_norm / (norm + 1e-6)).clamp(max=1.0))
    return norm


@torch.no_grad()
def level(parameters: Iterable[Tensor], tensor_parallel: DeviceMesh) -> None:
    """Average in place the gradients that all who share a layer have computed alike, but for the order of sums.

    Without it rounding lets their copies of norms and embeddings drift apart where sums have no fixed order (CUDA).
    """
    group, size = tensor_parallel.get_group(), tensor_parallel.size()
    names = tensor_parallel.mesh_dim_names or ()
    found = [
        _local(parameter)
        for parameter in parameters
        if parameter.grad is not None
        and not (isinstance(parameter, DTensor) and set(names) <= set(parameter.device_mesh.mesh_dim_names or ()))
    ]
    for work in [dist.all_reduce(gradient, group=group, async_op=True) for gradient in found]:
        assert work is not None
        work.wait()
    if found:
        torch._foreach_div_(found, size)


def _divided(parameters: list[Tensor]) -> bool:
    return any(isinstance(parameter, DTensor) for parameter in parameters)


def _groups(parameter: Tensor) -> dict[str, dist.ProcessGroup]:
    """Among whom its elements are divided, by name; those who hold the same are not in it."""
    if not isinstance(parameter, DTensor):
        return {}
    mesh = parameter.device_mesh
    groups = [mesh.get_group(axis) for axis, placed in enumerate(parameter.placements) if not placed.is_replicate()]
    return {group.group_name: group for group in groups}


def _local(parameter: Tensor) -> Tensor:
    """This process's part of its gradient, itself, not a copy."""
    gradient = parameter.grad
    assert gradient is not None
    if not isinstance(gradient, DTensor):
        return gradient
    if isinstance(parameter, DTensor) and gradient.placements != parameter.placements:
        gradient = parameter.grad = gradient.redistribute(placements=parameter.placements)
    return gradient.to_local()
