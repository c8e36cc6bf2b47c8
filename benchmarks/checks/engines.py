"""Engines on the device beside transformers' `generate` in float32 on the CPU: tokens and log-probabilities."""

import importlib.util
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from benchmarks.checks.outcome import Found
from benchmarks.checks.subject import GREEDY, SAMPLED, Subject
from benchmarks.device.measure import Clock
from tpg.randomness import key, uniforms
from tpg.rollouts.engine import Prefix, expanded
from tpg.rollouts.sampling import Sampling
from tpg.trajectories import Trajectories

FLOAT32 = {
    "equal_share": (">=", 0.9),
    "largest_probability_gap": ("<=", 1e-3),
    "largest_logprob_gap": ("<=", 1e-3),
}
"""Tokens may differ where the choice between them hangs on less than this much probability; nats for log-probs."""
BF16 = {"mean_logprob_gap": ("<=", 0.1), "largest_logprob_gap": ("<=", 1.0)}
"""Nats a token."""
CONTINUATIONS = 2
"""Of each prefix."""


def float32_checks(subject: Subject, name: str, clock: Clock) -> Iterator[Found]:
    """Greedy, sampled and continued responses."""
    reason = missing(name)
    if reason:
        yield Found(f"{name}, float32", skipped=reason)
        return
    with subject.engine(name) as engine:
        for kind, sampling in (("greedy", GREEDY), ("sampled", SAMPLED)):
            found = engine.generate(subject.prefixes, sampling, on_step=clock.check)
            figures = compared(subject, subject.prefixes, found, subject.expected(sampling), sampling)
            yield Found(f"{name}, float32, {kind} tokens", figures, FLOAT32)
        trunk = engine.generate(subject.prefixes, SAMPLED, on_step=clock.check, retain=True)
        forks = forks_of(subject, trunk)
        found = engine.generate(forks, SAMPLED, on_step=clock.check)
        engine.release()
        figures = compared(subject, forks, found, subject.continued(forks, SAMPLED), SAMPLED)
        yield Found(f"{name}, float32, continuations", figures, FLOAT32)


def bf16_checks(subject: Subject, name: str, clock: Clock) -> Iterator[Found]:
    """The log-probabilities that the engine records beside those of the same tokens in float32."""
    reason = missing(name)
    if reason:
        yield Found(f"{name}, bf16", skipped=reason)
        return
    with subject.bf16(), subject.engine(name) as engine:
        found = engine.generate(subject.prefixes, SAMPLED, on_step=clock.check)
    with torch.no_grad():
        expected_BT = subject.reference.statistics(found, SAMPLED.temperature, layout="padded").logprobs
    gaps_N = (found.rollout_logprobs_BT - expected_BT)[found.action_mask_BT].abs()
    figures = {
        "tokens": gaps_N.numel(),
        "mean_logprob_gap": float(gaps_N.mean()),
        "largest_logprob_gap": float(gaps_N.max()),
    }
    yield Found(f"{name}, bf16, log-probabilities", figures, BF16)


def missing(name: str) -> str | None:
    """Why the engine cannot be tried here."""
    return "vllm is not installed" if name == "vllm" and importlib.util.find_spec("vllm") is None else None


def forks_of(subject: Subject, trunk: Trajectories) -> list[Prefix]:
    """Continuations from the middle of the longest response to each prompt."""
    group, limit = subject.options.responses_per_prompt, subject.options.response_tokens
    forks = []
    for i, prefix in enumerate(subject.prefixes):
        lengths_G = trunk.lengths_B[i * group : (i + 1) * group]
        parent = i * group + int(lengths_G.argmax())
        position = int(lengths_G.max()) // 2
        forks.append(
            replace(
                prefix,
                max_tokens=limit - position,
                keys=tuple(key(subject.options.seed, i, n) for n in range(CONTINUATIONS)),
                response_ids=tuple(trunk.response_ids_BT[parent, :position].tolist()),
                parent=parent if position else -1,
            )
        )
    return forks


def compared(
    subject: Subject, prefixes: Sequence[Prefix], found: Trajectories, expected: Trajectories, sampling: Sampling
) -> dict[str, Any]:
    """New tokens up to each row's first difference, what that hangs on, and log-probabilities before it."""
    equal = total = differing = 0
    probability_gaps, logprob_gaps = [0.0], [0.0]
    rows = expanded(prefixes)
    for i, row in enumerate(rows):
        (ids, logprobs), (expected_ids, expected_logprobs) = _new(found, i), _new(expected, i)
        pairs = list(zip(ids, expected_ids, strict=False))
        same = next((t for t, (one, other) in enumerate(pairs) if one != other), len(pairs))
        equal, total = equal + same, total + len(expected_ids)
        if same:
            logprob_gaps.append(float((logprobs[:same] - expected_logprobs[:same]).abs().max()))
        if same < len(pairs):
            differing += 1
            context = [*row.prefix.prompt_ids, *row.prefix.response_ids, *ids[:same]]
            uniform = float(uniforms([row.key], same + 1)[0, same])
            probability_gaps.append(probability_gap(subject, context, pairs[same], sampling, uniform))
        elif len(ids) != len(expected_ids):  # one went on after what ended the other
            differing += 1
            probability_gaps.append(1.0)
    return {
        "tokens": total,
        "equal_share": equal / total,
        "differing_responses": differing,
        "largest_probability_gap": max(probability_gaps),
        "largest_logprob_gap": max(logprob_gaps),
    }


@torch.no_grad()
def probability_gap(
    subject: Subject, context: list[int], tokens: tuple[int, int], sampling: Sampling, uniform: float
) -> float:
    """How much probability would have to move for the first of `tokens` to be chosen, by the CPU's distribution."""
    probs_V = subject.reference.model(torch.tensor([context])).logits[0, -1].double().softmax(-1)
    chosen, expected = tokens
    if sampling.temperature == 0:
        return float(probs_V[expected] - probs_V[chosen])
    before = float(probs_V[:chosen].sum())
    after = before + float(probs_V[chosen])
    return max(0.0, before - uniform, uniform - after)


def _new(trajectories: Trajectories, row: int) -> tuple[list[int], Tensor]:
    mask_T = trajectories.action_mask_BT[row]
    return trajectories.response_ids_BT[row, mask_T].tolist(), trajectories.rollout_logprobs_BT[row, mask_T]
