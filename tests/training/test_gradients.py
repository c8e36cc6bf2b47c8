"""The norm of divided gradients and clipping by it, against torch's on whole ones."""

from __future__ import annotations

import pytest
import torch
from processes_of_a_group import in_processes
from torch import Tensor, nn

from tpg.training.parallel.gradients import clip, level, total_norm

# 3^2 + 4^2 + 12^2 = 13^2
PLAIN = [[3.0, 4.0], [12.0]]


def plain() -> list[Tensor]:
    weights = [nn.Parameter(torch.zeros(len(row))) for row in PLAIN]
    for weight, row in zip(weights, PLAIN, strict=True):
        weight.grad = torch.tensor(row)
    return [*weights, nn.Parameter(torch.zeros(3))]


def test_undivided_gradients_by_hand():
    weights = plain()
    assert float(total_norm(weights)) == 13.0
    assert float(clip(weights, 26.0)) == 13.0
    assert [weight.grad.tolist() for weight in weights[:2]] == PLAIN
    assert float(clip(weights, 6.5)) == 13.0
    assert weights[0].grad.tolist() == pytest.approx([1.5, 2.0], rel=1e-6)
    assert weights[1].grad.tolist() == pytest.approx([6.0], rel=1e-6)
    assert weights[2].grad is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_undivided_gradients_are_torchs(dtype):
    torch.manual_seed(0)
    gradients = [torch.randn(5, 3).to(dtype), torch.randn(7).to(dtype)]
    weights = [nn.Parameter(torch.zeros_like(gradient)) for gradient in gradients]
    for weight, gradient in zip(weights, gradients, strict=True):
        weight.grad = gradient.clone()
    expected = torch.nn.utils.get_total_norm(gradients)
    assert torch.equal(total_norm(iter(weights)), expected)
    assert torch.equal(clip(iter(weights), 0.5), expected)
    others = [nn.Parameter(torch.zeros_like(gradient)) for gradient in gradients]
    for weight, gradient in zip(others, gradients, strict=True):
        weight.grad = gradient.clone()
    torch.nn.utils.clip_grad_norm_(others, 0.5)
    assert all(torch.equal(one.grad, other.grad) for one, other in zip(weights, others, strict=True))


def test_nothing_has_no_norm():
    assert float(total_norm([])) == 0.0
    assert float(total_norm([nn.Parameter(torch.zeros(2))])) == 0.0


def divided() -> dict[str, object]:
    """On each of four processes: gradients 1, 2, 3, ... in every kind of division at once."""
    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor

    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("data_parallel", "tensor_parallel"))
    data, tensor = mesh["data_parallel"], mesh["tensor_parallel"]
    placed = [
        None,  # held by all
        (data, [Shard(0)]),
        (tensor, [Shard(1)]),
        (tensor, [Replicate()]),
        (mesh, [Shard(0), Shard(1)]),
        (mesh, [Shard(0), Replicate()]),
        (data, [Shard(0)]),  # unevenly: 1 row of one process, none of the other
    ]
    shapes = [(2, 3), (4, 2), (2, 4), (3, 2), (4, 4), (3, 2), (1, 5)]
    wholes, weights = [], []
    for index, (shape, how) in enumerate(zip(shapes, placed, strict=True)):
        gradient = torch.arange(1.0, 1 + shape[0] * shape[1]).reshape(shape) * (index + 1)
        weight: Tensor = torch.zeros(shape)
        given: Tensor = gradient.clone()
        if how is not None:
            weight, given = distribute_tensor(weight, *how), distribute_tensor(given, *how)
        weights.append(nn.Parameter(weight))
        weights[-1].grad = given
        wholes.append(gradient)
    # A sum over devices that is yet to be made: 0.25 and 0.75 of it.
    weights.append(nn.Parameter(distribute_tensor(torch.zeros(4), tensor, [Replicate()])))
    wholes.append(torch.arange(4.0))
    share = 0.25 + 0.5 * tensor.get_local_rank()
    weights[-1].grad = DTensor.from_local(torch.arange(4.0) * share, tensor, [Partial()], run_check=False)
    weights.append(nn.Parameter(distribute_tensor(torch.zeros(4), data, [Shard(0)])))  # has no gradient
    bare = weights[1:3]
    expected = torch.nn.utils.get_total_norm(wholes)
    found = {"expected": float(expected), "norm": float(total_norm(weights))}
    found["bare"] = float(total_norm(bare)) - float(torch.nn.utils.get_total_norm(wholes[1:3]))
    found["returned"] = float(clip(weights, 1.0))
    found["clipped"] = float(total_norm(weights))
    found["far"] = max(
        float(
            (weight.grad.full_tensor() if hasattr(weight.grad, "full_tensor") else weight.grad)
            .sub(gradient / expected)
            .abs()
            .max()
        )
        for weight, gradient in zip(weights[:-1], wholes, strict=True)
    )
    clip(weights, 100.0)
    found["unclipped"] = float(total_norm(weights))

    # Each who shares a layer has computed its own rounding of a gradient.
    rank, place = dist.get_rank(), tensor.get_local_rank()
    alike = nn.Parameter(torch.zeros(2))
    alike.grad = torch.tensor([1.0, 2.0]) + place
    parts = nn.Parameter(distribute_tensor(torch.zeros(2), data, [Shard(0)]))
    parts.grad = DTensor.from_local(torch.tensor([float(rank)]), data, [Shard(0)], run_check=False)
    own = nn.Parameter(distribute_tensor(torch.zeros(2), tensor, [Shard(0)]))
    own.grad = DTensor.from_local(torch.tensor([float(rank)]), tensor, [Shard(0)], run_check=False)
    level([alike, parts, own, nn.Parameter(torch.zeros(1))], tensor)
    found["level"] = [alike.grad.tolist(), parts.grad.to_local().tolist(), own.grad.to_local().tolist()]
    return found


@pytest.fixture(scope="module")
def ranks():
    return in_processes(4, divided)


@pytest.mark.long
def test_an_element_counts_once_however_it_is_divided(ranks):
    for found in ranks:
        assert found["norm"] == pytest.approx(found["expected"], rel=1e-6)
        assert found["bare"] == pytest.approx(0.0, abs=1e-4)


@pytest.mark.long
def test_divided_gradients_are_clipped(ranks):
    for found in ranks:
        assert found["returned"] == pytest.approx(found["expected"], rel=1e-6)
        assert found["clipped"] == pytest.approx(1.0, rel=1e-5)
        assert found["unclipped"] == pytest.approx(1.0, rel=1e-5)
        assert found["far"] < 1e-6


@pytest.mark.long
def test_what_is_computed_twice_is_averaged(ranks):
    # Ranks 0, 1 share the layers of one replica, ranks 2, 3 those of the other.
    expected = [
        [[1.5, 2.5], [0.5], [0.0]],
        [[1.5, 2.5], [0.5], [1.0]],
        [[1.5, 2.5], [2.5], [2.0]],
        [[1.5, 2.5], [2.5], [3.0]],
    ]
    assert [found["level"] for found in ranks] == expected
