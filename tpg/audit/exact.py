"""Mean and covariance of a method's gradient estimate, by complete enumeration where that is possible."""

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from tpg.aggregation import MinibatchSize
from tpg.audit.enumeration import Asked, Batches, Bench
from tpg.audit.tabular import all_tuples

Passing = Literal["together", "weights apart", "apart"]
"""How batches go through the classes: all at once, each alone through the estimator, or each wholly alone."""
SLOWER: dict[Passing, int] = {"together": 1, "weights apart": 25, "apart": 25}
"""By what factor fewer batches are enumerated."""


@dataclass(frozen=True, eq=False)
class Moments:
    """What the gradient estimate of one batch is on average and how it spreads, beside the true gradient."""

    true: Tensor
    """Of the expected reward, less what a divergence costs; a vector over all logits."""
    mean: Tensor
    trace: float
    """Of the covariance of one batch's estimate."""
    tokens: float
    """Generated for one batch, greedy responses and continuations included."""
    responses: float
    """Updated on."""
    enumerated: bool
    error: float
    """Standard error of `mean` as a vector; 0 where everything was enumerated."""


def true_gradient(bench: Bench) -> Tensor:
    """The gradient of the mean over prompts of `E[R] - coefficient * KL(policy || reference)`, (K*S*V,)."""
    world, kl = bench.world, bench.method.kl
    logits = world.logits.clone().requires_grad_()
    logprob_KR = world.tree.statistics(logits, bench.sampling.temperature).logprobs.sum(-1)
    value_KR = world.rewards_KR
    if kl.needs_reference:
        reference_KR = world.tree.statistics(world.reference_logits, bench.sampling.temperature).logprobs.sum(-1)
        # The score function has mean zero: the log-ratio may be held fixed.
        value_KR = value_KR - kl.coefficient * (logprob_KR.detach() - reference_KR)  # type: ignore[attr-defined]
    objective = (logprob_KR.exp() * value_KR).sum(-1).mean()
    return torch.autograd.grad(objective, logits)[0].flatten()


def moments(bench: Bench, group: int, *, limit: int = 50_000, samples: int = 20_000, seed: int = 0) -> Moments:
    """Of a batch of `group` responses to each prompt.

    Up to `limit` batches are enumerated; beyond that `samples` are drawn. Prompts are enumerated one at a time where
    that is the same, which is tried out, not assumed.
    """
    every = torch.arange(len(bench.world.logits)).repeat_interleave(group)
    generator = torch.Generator().manual_seed(seed)
    trial = _drawn(bench, every, 12, generator)
    passing = _passing(bench, trial)
    within = limit // SLOWER[passing]
    try:
        found = _counted(bench, every, group, within, trial, passing)
    except _NotLinearError:
        found = None
    drawn = _drawn(bench, every, samples // (1 if passing == "together" else 10), generator)
    return found or _sampled(bench, drawn, passing, generator)


class _NotLinearError(Exception):
    """The estimate is not linear in the Monte-Carlo values: their mean does not stand for them."""


def _counted(bench: Bench, every: Tensor, group: int, within: int, trial: Batches, passing: Passing) -> Moments | None:
    """By enumeration, of all prompts at once or one by one; None where that are too many batches."""
    prompts, width = len(bench.world.logits), len(bench.world.tree.responses) * len(_lots(bench)[0])
    if width ** (group * prompts) <= within:
        return _enumerated(bench, every, None, passing)
    others = MinibatchSize((prompts - 1) * group, 0, 0)
    if prompts > 1 and width**group <= within and passing == "together" and _separable(bench, trial, group):
        parts = [_enumerated(bench, every[every == k], others, passing) for k in range(prompts)]
        return replace(
            parts[0],
            mean=torch.stack([part.mean for part in parts]).sum(0),
            trace=sum(part.trace for part in parts),
            tokens=sum(part.tokens for part in parts),
            responses=sum(part.responses for part in parts),
        )
    return None


def _lots(bench: Bench) -> tuple[list[float], Tensor]:
    probabilities, numbers = zip(*bench.method.estimator.lots(bench.world.tree.horizon), strict=True)
    return list(probabilities), torch.stack(numbers).double()


def _drawn(bench: Bench, prompt_B: Tensor, count: int, generator: torch.Generator) -> Batches:
    """Batches as the engine would generate them."""
    columns = [
        torch.multinomial(bench.probability_KR[k], count, replacement=True, generator=generator) for k in prompt_B
    ]
    shape = (count, len(prompt_B), bench.world.tree.horizon)
    return Batches(torch.stack(columns, dim=-1), torch.rand(shape, dtype=torch.float64, generator=generator), prompt_B)


def _gradients(
    bench: Bench, batches: Batches, values: Tensor | None, others: MinibatchSize | None, passing: Passing
) -> Tensor:
    if passing == "apart":
        return bench.gradients_apart(batches, values, others)
    return bench.gradients(batches, values, others, weights_apart=passing == "weights apart")


def _asked(bench: Bench, batches: Batches) -> Asked | None:
    wanted = bench.method.estimator.requests(bench.record(batches)).continuations
    return None if wanted is None else bench.asked(batches, wanted)


def _passing(bench: Bench, trial: Batches) -> Passing:
    """The fastest way in which each batch gives what it gives alone."""
    alone = bench.gradients_apart(trial)
    ways: tuple[Passing, Passing] = ("together", "weights apart")
    for way in ways:
        if torch.allclose(_gradients(bench, trial, None, None, way), alone, rtol=1e-9, atol=1e-12):
            return way
    return "apart"


def _separable(bench: Bench, trial: Batches, group: int) -> bool:
    """Whether a minibatch's gradient is the sum over its prompts of what each gives beside any others."""
    whole = bench.gradients(trial)
    for more in (0, 7):
        total = torch.zeros_like(whole)
        for k in trial.prompt_B.unique():
            slots = trial.prompt_B == k
            part = Batches(trial.response_NB[:, slots], trial.uniforms_NBT[:, slots], trial.prompt_B[slots])
            total += bench.gradients(part, None, MinibatchSize(len(trial.prompt_B) - group, more, 0))
        if not torch.allclose(whole, total, rtol=1e-9, atol=1e-12):
            return False
    return True


def _enumerated(bench: Bench, prompt_B: Tensor, others: MinibatchSize | None, passing: Passing) -> Moments:
    """Every batch of these slots, each with its probability."""
    lot_probabilities, lot_LT = _lots(bench)
    R, L = len(bench.world.tree.responses), len(lot_LT)
    pairs = all_tuples([R * L] * len(prompt_B))
    response_NB, lot_NB = pairs // L, pairs % L
    batches = Batches(response_NB, lot_LT[lot_NB], prompt_B)
    chances_NB = (
        bench.probability_KR[prompt_B, response_NB] * torch.tensor(lot_probabilities, dtype=torch.float64)[lot_NB]
    )
    probability_N = chances_NB.prod(-1)
    reached = probability_N > 0
    batches, probability_N = batches.select(reached), probability_N[reached]

    estimates = _gradients(bench, batches, None, others, passing)
    mean = probability_N @ estimates
    # Around the mean, not as a difference of squares: a small variance of a large mean would be lost in rounding.
    spread_N = (estimates - mean).square().sum(-1) + _value_noise(bench, batches, estimates, others, passing)
    tokens_N, responses_N = _cost(bench, batches)
    return Moments(
        true=true_gradient(bench),
        mean=mean,
        trace=float(probability_N @ spread_N),
        tokens=float(probability_N @ tokens_N),
        responses=float(probability_N @ responses_N),
        enumerated=True,
        error=0.0,
    )


def _value_noise(
    bench: Bench, batches: Batches, estimates: Tensor, others: MinibatchSize | None, passing: Passing
) -> Tensor:
    """The variance that Monte-Carlo values add in each batch, (N,).

    The estimate is linear in the values, which are independent: moving one value at a time gives every coefficient.
    Raises `_NotLinearError` when the estimate is not linear in them after all.
    """
    asked = _asked(bench, batches)
    noise_N = torch.zeros(len(batches), dtype=torch.float64)
    if asked is None or not len(asked.node_U):
        return noise_N
    mean_U = bench.nodes[0][asked.prompt_U, asked.node_U]
    variance_U = bench.nodes[1][asked.prompt_U, asked.node_U] / asked.count
    moving_U = variance_U > 0
    # Which of its batch's moving values each is; prefixes are sorted by batch.
    so_far_U = torch.cat([torch.zeros(1, dtype=torch.long), moving_U.cumsum(0)])
    batch_U = asked.batch_U.contiguous()
    order_U = so_far_U[:-1] - so_far_U[torch.searchsorted(batch_U, batch_U)]
    moved = torch.zeros_like(estimates)
    for m in range(int(order_U.max()) + 1):
        chosen_U = (order_U == m) & moving_U
        coefficient = _gradients(bench, batches, mean_U + chosen_U, others, passing) - estimates
        moved += coefficient
        noise_N.index_add_(
            0, asked.batch_U[chosen_U], variance_U[chosen_U] * coefficient.square().sum(-1)[asked.batch_U[chosen_U]]
        )
    for far in (2.0, -2.0):
        at_once = _gradients(bench, batches, mean_U + far * moving_U, others, passing) - estimates
        if not torch.allclose(at_once, far * moved, rtol=1e-7, atol=1e-9):
            raise _NotLinearError
    return noise_N


def _cost(bench: Bench, batches: Batches) -> tuple[Tensor, Tensor]:
    """Tokens generated for each batch on average, and responses that it updates on, (N,) each."""
    trajectories = bench.record(batches)
    requests = bench.method.estimator.requests(trajectories)
    N = len(batches)
    tokens_N = trajectories.lengths_B.view(N, -1).sum(-1).double()
    if requests.greedy:
        prompts = batches.prompt_B.unique()
        tokens_N += bench.world.tree.mask_RT.sum(-1)[bench.greedy_K[prompts]].sum()
    if requests.continuations is not None:
        asked = bench.asked(batches, requests.continuations)
        depth = torch.tensor([len(tokens) for tokens in bench.world.tree.node])
        more_U = asked.count * (bench.nodes[2][asked.prompt_U, asked.node_U] - depth[asked.node_U])
        tokens_N.index_add_(0, asked.batch_U, more_U)
    return tokens_N, bench.weighed(batches).kept_B.view(N, -1).sum(-1).double()


def _sampled(bench: Bench, batches: Batches, passing: Passing, generator: torch.Generator) -> Moments:
    """Batches as they come, continuations drawn too."""
    asked, values_U = _asked(bench, batches), None
    if asked is not None:
        through = bench.world.tree.through_RN.T[asked.node_U].double()
        chances = bench.probability_KR[asked.prompt_U] * through
        drawn = torch.multinomial(chances, asked.count, replacement=True, generator=generator)
        values_U = bench.shaped_KR[asked.prompt_U[:, None], drawn].mean(-1)
    estimates = _gradients(bench, batches, values_U, None, passing)
    mean, trace = estimates.mean(0), float(estimates.var(0).sum())
    tokens_N, responses_N = _cost(bench, batches)
    return Moments(
        true=true_gradient(bench),
        mean=mean,
        trace=trace,
        tokens=float(tokens_N.mean()),
        responses=float(responses_N.mean()),
        enumerated=False,
        error=(trace / len(batches)) ** 0.5,
    )
