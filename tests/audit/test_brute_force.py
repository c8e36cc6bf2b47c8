"""Batches of group estimators, counted a second time in plain Python, where they hang together in every way."""

import statistics

import pytest
import torch
from tables import Count, drawn, mean_and_trace, of_world

from tpg.aggregation import SequenceMean, SequenceSum, TokenMean
from tpg.audit.tabular import Tree
from tpg.estimators.group import GRPO
from tpg.estimators.opo import OPO
from tpg.estimators.reinforce_pp import ReinforcePP
from tpg.estimators.rloo import RLOO

SMALL = {"tree": Tree(vocabulary=2, horizon=2, end=True), "prompts": 2, "reward_scales": (1.0, 4.0)}


def count_batches(count, advantages, divisor, group=2, prompts=2):
    """`divisor(batch, i)` of response i; `advantages(rewards, batch)` of one group, or of the batch if it says so."""
    slots = [k for k in range(prompts) for _ in range(group)]
    for batch, chance in count.batches(slots):
        rewards = [count.reward(k, one) for k, one in zip(slots, batch, strict=True)]
        weights = advantages(rewards, batch)
        gradient = torch.zeros_like(count.logits)
        for i, (k, one) in enumerate(zip(slots, batch, strict=True)):
            score = sum(count.score(k, one, t) for t in range(len(one)))
            gradient = gradient + weights[i] / divisor(batch, i) * score
        yield gradient, chance


def leave_one_out(rewards, batch):
    return [rewards[i] - rewards[i ^ 1] for i in range(len(rewards))]


def own_length_counts(rewards, batch):
    found = []
    for i in range(len(rewards)):
        pair = (i, i ^ 1)
        total = sum(len(batch[j]) for j in pair)
        found.append(rewards[i] - sum(len(batch[j]) * rewards[j] for j in pair) / total)
    return found


def whitened(rewards, batch):
    mean, deviation = statistics.mean(rewards), statistics.stdev(rewards)
    return [0.0 if reward == mean else (reward - mean) / (deviation + 1e-4) for reward in rewards]


def batch_standardised(rewards, batch):
    deviation = statistics.stdev(rewards)
    return [(rewards[i] - rewards[i ^ 1]) / 2 / (deviation + 1e-4) for i in range(len(rewards))]


def by_responses(batch, i):
    return len(batch)


def by_all_tokens(batch, i):
    return sum(len(one) for one in batch)


def by_own_tokens(batch, i):
    return len(batch) * len(batch[i])


CASES = [
    (RLOO(), SequenceSum(), leave_one_out, by_responses),
    (RLOO(), TokenMean(), leave_one_out, by_all_tokens),
    (RLOO(), SequenceMean(), leave_one_out, by_own_tokens),
    (OPO(), SequenceSum(), own_length_counts, by_responses),
    (GRPO(std="batch"), SequenceSum(), batch_standardised, by_responses),
    (ReinforcePP(), SequenceSum(), whitened, by_responses),
    (ReinforcePP(), TokenMean(), whitened, by_all_tokens),
]


@pytest.mark.parametrize(("estimator", "aggregation", "advantages", "divisor"), CASES)
def test_two_prompts_of_two_responses_that_end_early(estimator, aggregation, advantages, divisor):
    world = drawn(2, **SMALL)
    mean, trace = mean_and_trace(count_batches(Count(world), advantages, divisor))
    found = of_world(world, estimator, 2, aggregation=aggregation)
    assert found.enumerated
    assert found.mean.tolist() == pytest.approx(mean.tolist(), abs=1e-12)
    assert found.trace == pytest.approx(trace)
    unbiased = isinstance(estimator, RLOO) and divisor is by_responses
    assert (float((found.mean - found.true).norm()) < 1e-12) is unbiased


@pytest.mark.parametrize(("estimator", "aggregation", "advantages", "divisor"), CASES[:4])
def test_prompts_one_at_a_time_give_the_same(estimator, aggregation, advantages, divisor):
    # 3^4 batches are too many, 3^2 of each prompt are not.
    world = drawn(2, **SMALL)
    whole = of_world(world, estimator, 2, aggregation=aggregation)
    parts = of_world(world, estimator, 2, aggregation=aggregation, limit=20, samples=400)
    separable = divisor is not by_all_tokens
    assert parts.enumerated is separable
    if separable:
        assert parts.mean.tolist() == pytest.approx(whole.mean.tolist(), abs=1e-13)
        assert parts.trace == pytest.approx(whole.trace)
        assert parts.tokens == pytest.approx(whole.tokens)
        assert parts.responses == whole.responses == 4


@pytest.mark.parametrize(
    ("estimator", "aggregation"),
    [(GRPO(std="batch"), SequenceSum()), (ReinforcePP(), SequenceSum()), (RLOO(), TokenMean())],
)
def test_what_hangs_together_is_never_taken_apart(estimator, aggregation):
    found = of_world(drawn(2, **SMALL), estimator, 2, aggregation=aggregation, limit=60 * 25, samples=2000)
    if isinstance(estimator, RLOO):
        assert found.enumerated  # 81 batches, all together
    found = of_world(drawn(2, **SMALL), estimator, 2, aggregation=aggregation, limit=60, samples=4000)
    assert not found.enumerated


@pytest.mark.parametrize("case", range(len(CASES)))
def test_sampling_agrees_with_counting(case):
    estimator, aggregation, _, _ = CASES[case]
    world = drawn(2, **SMALL)
    exact = of_world(world, estimator, 2, aggregation=aggregation)
    sampled = of_world(world, estimator, 2, aggregation=aggregation, limit=1, samples=8000, seed=3)
    assert not sampled.enumerated
    assert 0 < sampled.error < 0.1
    assert float((sampled.mean - exact.mean).norm()) < 1.96 * sampled.error
    assert sampled.trace == pytest.approx(exact.trace, rel=0.15)
    assert sampled.tokens == pytest.approx(exact.tokens, rel=0.02)
