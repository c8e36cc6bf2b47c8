"""An optimizer's state as one process would hold it, from and to weights that are divided among processes."""

from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, Replicate

from tpg.policies.gathered import whole


@torch.no_grad()
def whole_state(optimizer: torch.optim.Optimizer, *, keep: bool) -> dict[str, Any]:
    """`state_dict` with whole tensors on the CPU, one gathered at a time; every process calls it.

    Those that do not `keep` it hold the groups' options alone.
    """
    state = optimizer.state_dict()
    held: dict[int, dict[str, Any]] = {}
    for index, values in state["state"].items():
        gathered = {}
        for name, value in values.items():
            found = whole(value) if isinstance(value, Tensor) else value
            if keep:
                gathered[name] = found.to("cpu", copy=True) if isinstance(found, Tensor) else found
        if keep:
            held[index] = gathered
    return {"state": held, "param_groups": state["param_groups"]}


@torch.no_grad()
def take_state(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Load what `whole_state`, or a single process's `state_dict`, gave: of each tensor this process's part."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    parts = {
        index: {name: _part(value, parameters[index]) for name, value in values.items()}
        for index, values in state["state"].items()
    }
    optimizer.load_state_dict({"state": parts, "param_groups": state["param_groups"]})


def _part(value: Any, parameter: Tensor) -> Any:
    if not (isinstance(parameter, DTensor) and isinstance(value, Tensor) and value.shape == parameter.shape):
        return value
    mesh = parameter.device_mesh
    held = value.to(parameter.device, parameter.dtype)
    everywhere = DTensor.from_local(held, mesh, [Replicate()] * mesh.ndim, run_check=False)
    return everywhere.redistribute(placements=parameter.placements)
