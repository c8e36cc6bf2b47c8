"""Loss and gradient of every objective on the device beside float32 on the CPU, on the same trajectories."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from benchmarks.checks.options import USUAL
from benchmarks.checks.outcome import Found
from benchmarks.checks.subject import SAMPLED, Subject
from benchmarks.common.reward import token_reward
from benchmarks.curves.ours import composed
from benchmarks.device.measure import Clock
from tpg.aggregation import MinibatchSize
from tpg.estimators.base import Answers
from tpg.method import Method
from tpg.policies.base import Policy
from tpg.policies.logprobs import LayoutName
from tpg.trajectories import Trajectories

LAYOUTS: tuple[LayoutName, ...] = ("shared", "padded")
FLOAT32 = {"cosine": (">=", 1 - 1e-5), "norm_gap": ("<=", 1e-3), "loss_gap": ("<=", 1e-4)}
BF16 = {"cosine": (">=", 0.99), "norm_gap": ("<=", 0.05), "loss_gap": ("<=", 0.02)}
"""Cosine of the gradients, their norms' ratio less 1, losses' distance over the mean absolute loss."""
MOVES = (-0.3, -0.05, 0.05, 0.3)
"""What each token's log-probability has moved by since the rollout, nats. No sum of a few such numbers lies so near to
a clip that rounding could decide whether it binds."""
REFERENCE_DISTANCE = 0.3


@dataclass(frozen=True)
class Gradient:
    """Of one loss."""

    loss: float
    by_name: dict[str, Tensor]


@dataclass(frozen=True)
class Data:
    """What the gradients are of, on the CPU."""

    trajectories: Trajectories
    """Scored, with a made-up reference, weights to come."""
    logprobs_BT: Tensor
    moved_BT: Tensor
    """The log-probabilities from before updates that were never made."""
    size: MinibatchSize


def checks(subject: Subject, clock: Clock) -> Iterator[Found]:
    """Every objective: in float32 after updates, so that ratios are not 1; in bf16 as the first update has it.

    A clip such as GSPO's of 4e-4 binds or not by less than bf16 resolves, which is why ratios are 1 there.
    """
    data = _data(subject)
    for name in subject.options.objectives or USUAL:
        method = composed(["policy=tiny", *USUAL[name]]).method
        for precision, bounds in (("float32", FLOAT32), ("bf16", BF16)):
            trajectories = _weighed(method, data, moved=precision == "float32")
            expected = _gradient(subject.reference, method, trajectories, data.size, "padded")
            scale = _scale(method, trajectories, data)
            figures: dict[str, Any] = {"layouts": {}}
            for layout in LAYOUTS:
                clock.check()
                with_bf16 = precision == "bf16"
                there = trajectories.to(subject.device)
                found = _gradient(subject.policy, method, there, data.size, layout, subject.bf16(with_bf16))
                figures["layouts"][layout] = compared(found, expected, scale)
            worst = figures["layouts"].values()
            figures |= {"cosine": min(each["cosine"] for each in worst)}
            figures |= {key: max(each[key] for each in worst) for key in ("norm_gap", "loss_gap")}
            yield Found(f"{name}, {precision}, gradient", figures, bounds)
    subject.policy.zero_grad()
    subject.reference.zero_grad()


@torch.no_grad()
def _data(subject: Subject) -> Data:
    trajectories = subject.expected(SAMPLED)
    logprobs_BT = subject.reference.statistics(trajectories, SAMPLED.temperature, layout="padded").logprobs
    rewards = [
        token_reward(ids[mask].tolist())
        for ids, mask in zip(trajectories.response_ids_BT, trajectories.response_mask_BT, strict=True)
    ]
    drawn = torch.Generator().manual_seed(subject.options.seed)
    moves_BT = torch.tensor(MOVES)[torch.randint(len(MOVES), logprobs_BT.shape, generator=drawn)]
    distance_BT = REFERENCE_DISTANCE * torch.randn(logprobs_BT.shape, generator=drawn)
    scored = trajectories.replace(
        rewards_B=torch.tensor(rewards),
        scored_B=torch.ones(len(rewards), dtype=torch.bool),
        ref_logprobs_BT=logprobs_BT + distance_BT,
    )
    tokens = int(trajectories.action_mask_BT.sum())
    size = MinibatchSize(len(trajectories), tokens, subject.options.response_tokens)
    return Data(scored, logprobs_BT, logprobs_BT + moves_BT, size)


def _weighed(method: Method, data: Data, *, moved: bool) -> Trajectories:
    trajectories = data.trajectories.replace(old_logprobs_BT=data.moved_BT if moved else None)
    if not method.kl.needs_reference:
        trajectories = trajectories.replace(ref_logprobs_BT=None)
    return method.weigh(trajectories, Answers(), method.initial_state()).trajectories


def _gradient(
    policy: Policy,
    method: Method,
    trajectories: Trajectories,
    size: MinibatchSize,
    layout: LayoutName,
    autocast: Any = None,
) -> Gradient:
    """As an update takes it: the forward pass and the loss under autocast, the backward pass outside of it."""
    policy.zero_grad()
    with autocast or torch.autocast(policy.device.type, enabled=False):
        statistics = policy.statistics(trajectories, SAMPLED.temperature, layout=layout)
        loss = method.loss(statistics, trajectories, size, method.initial_state()).value
    loss.backward()
    by_name = {name: weight.grad for name, weight in policy.named_parameters() if weight.grad is not None}
    policy.zero_grad()  # lets go of them: they are ours now
    return Gradient(float(loss.detach()), by_name)


def _scale(method: Method, trajectories: Trajectories, data: Data) -> float:
    """The loss if no two tokens' losses cancelled."""
    losses_BT = method.objective(data.logprobs_BT, trajectories).losses_BT.abs()
    return float(method.aggregation(losses_BT, trajectories.action_mask_BT, data.size))


def compared(found: Gradient, expected: Gradient, scale: float) -> dict[str, float]:
    """How alike two gradients and losses are; products are summed in float64, on the device of the first."""
    if found.by_name.keys() != expected.by_name.keys():
        raise ValueError(f"gradients of other weights: {sorted(found.by_name.keys() ^ expected.by_name.keys())[:3]}")
    products = torch.zeros(3, dtype=torch.float64)
    for name, given in found.by_name.items():
        one, other = given.double().flatten(), expected.by_name[name].to(given.device).double().flatten()
        products += torch.stack([one @ other, one @ one, other @ other]).cpu()
    both, own, others = products.tolist()
    return {
        "cosine": both / (own * others) ** 0.5 if own * others > 0 else 0.0,
        "norm_gap": abs((own / others) ** 0.5 - 1) if others > 0 else float("inf"),
        "loss_gap": abs(found.loss - expected.loss) / scale if scale > 0 else float("inf"),
    }
