"""Monte-Carlo values: their exact second moment against every outcome of every continuation; and the lots."""

import itertools

import pytest
import torch
from builders import record
from tables import Count, drawn, mean_and_trace, of_world

from tpg.audit.tabular import Tree, Worlds, draw_world
from tpg.estimators.boundaries import Coin, EveryTokens
from tpg.estimators.segment import Segment
from tpg.estimators.trepo import TRePOInterpolate, TRePOInverseProbability

FIXED, ENDING = Tree(vocabulary=2, horizon=2, end=False), Tree(vocabulary=2, horizon=2, end=True)


def outcomes(count, prefix, continuations):
    """What the mean reward of the continuations of a prefix may come to, with its probability."""
    behind = [one for one in count.responses if one[: len(prefix)] == prefix]
    total = sum(count.probability(0, one) for one in behind)
    for chosen in itertools.product(behind, repeat=continuations):
        chance = 1.0
        for one in chosen:
            chance *= count.probability(0, one) / total
        yield sum(count.reward(0, one) for one in chosen) / continuations, chance


def with_values(count, prefixes, continuations):
    """Every choice of a value for each of these prefixes, with its probability."""
    prefixes = sorted(prefixes)
    for values in itertools.product(*(list(outcomes(count, prefix, continuations)) for prefix in prefixes)):
        chance = 1.0
        for _, p in values:
            chance *= p
        yield dict(zip(prefixes, (value for value, _ in values), strict=True)), chance


def segments(count, group, continuations):
    """A boundary after every token; equal prefixes of a group share their value."""
    for batch, chance in count.batches([0] * group):
        prefixes = {one[:t] for one in batch for t in range(len(one))}
        for values, p in with_values(count, prefixes, continuations):
            gradient = torch.zeros_like(count.logits)
            for one in batch:
                worth = [values[one[:t]] for t in range(len(one))] + [count.reward(0, one)]
                for t in range(len(one)):
                    gradient = gradient + (worth[t + 1] - worth[t]) / group * count.score(0, one, t)
            yield gradient, chance * p


def one_token_of_each(count, group, continuations):
    """One token of each response, its weight times the response's length."""
    for batch, chance in count.batches([0] * group):
        for places in itertools.product(*(range(len(one)) for one in batch)):
            lot = 1.0
            prefixes = set()
            for one, t in zip(batch, places, strict=True):
                lot /= len(one)
                prefixes |= {one[:t]} | ({one[: t + 1]} if t + 1 < len(one) else set())
            for values, p in with_values(count, prefixes, continuations):
                gradient = torch.zeros_like(count.logits)
                for one, t in zip(batch, places, strict=True):
                    after = values[one[: t + 1]] if t + 1 < len(one) else count.reward(0, one)
                    weight = len(one) * (after - values[one[:t]])
                    gradient = gradient + weight / group * count.score(0, one, t)
                yield gradient, chance * lot * p


@pytest.mark.parametrize("tree", [FIXED, ENDING], ids=["fixed", "ending"])
@pytest.mark.parametrize(("group", "continuations"), [(1, 1), (1, 2), (2, 1)])
@pytest.mark.parametrize("kind", ["segment", "trepo"])
def test_the_variance_of_values_is_exact(kind, group, continuations, tree):
    world = drawn(5, tree=tree)
    if kind == "segment":
        estimator = Segment(continuations=continuations, boundaries=EveryTokens(tokens=1))
        pairs = segments(Count(world), group, continuations)
    else:
        estimator = TRePOInverseProbability(continuations=continuations, positions=1)
        pairs = one_token_of_each(Count(world), group, continuations)
    mean, trace = mean_and_trace(pairs)
    found = of_world(world, estimator, group)
    assert found.enumerated
    assert found.mean.tolist() == pytest.approx(mean.tolist(), abs=1e-12)
    assert found.mean.tolist() == pytest.approx(found.true.tolist(), abs=1e-12)
    assert found.trace == pytest.approx(trace, rel=1e-9)


def test_tokens_of_continuations():
    # Each response of 2 asks for the value of () and of its first token: 2 + 2 * (2 + 1) tokens.
    fixed = Segment(continuations=2, boundaries=EveryTokens(tokens=1))
    assert of_world(drawn(tree=FIXED), fixed).tokens == pytest.approx(2 + 2 * (2 + 1))
    # Two responses share (); the second prefix only if their first tokens are the same.
    count = Count(drawn(tree=FIXED))
    first = [sum(count.probability(0, (o, p)) for p in range(2)) for o in range(2)]
    same = first[0] ** 2 + first[1] ** 2
    expected = 4 + 2 * (2 + same * 1 + (1 - same) * 2)
    assert of_world(drawn(tree=FIXED), fixed, 2).tokens == pytest.approx(expected)


@pytest.mark.parametrize(
    "estimator",
    [
        Segment(continuations=2, boundaries=Coin(probability=0.4)),
        TRePOInterpolate(continuations=2, positions=2),
        TRePOInverseProbability(continuations=2, positions=2),
    ],
    ids=repr,
)
def test_sampling_agrees_with_counting_where_the_lot_decides(estimator):
    world = draw_world(Worlds(tree=Tree(vocabulary=2, horizon=3, end=True)), 1)
    exact = of_world(world, estimator)
    sampled = of_world(world, estimator, limit=1, samples=20_000)
    assert exact.enumerated
    assert not sampled.enumerated
    assert float((sampled.mean - exact.mean).norm()) < 1.96 * sampled.error
    assert sampled.trace == pytest.approx(exact.trace, rel=0.06)
    assert sampled.tokens == pytest.approx(exact.tokens, rel=0.01)
    # The lots' probabilities are exact to the last digit too.
    exactness = float((exact.mean - exact.true).norm())
    assert (exactness < 1e-12) is not isinstance(estimator, TRePOInterpolate)


DRAWERS = [
    (Coin(probability=0.3), lambda coin, trajectories: coin.at(trajectories)),
    (TRePOInverseProbability(positions=2), lambda trepo, trajectories: trepo.drawn(trajectories)),
    (TRePOInterpolate(positions=1), lambda trepo, trajectories: trepo.drawn(trajectories)),
]


@pytest.mark.parametrize(("drawer", "decisions"), DRAWERS, ids=lambda value: getattr(type(value), "__name__", ""))
@pytest.mark.parametrize("length", [1, 2, 4])
def test_lots_decide_as_often_as_random_numbers_do(drawer, decisions, length):
    width, count = 4, 20_000

    def of(uniforms_BT):
        plain = record([[2]] * len(uniforms_BT), [[1] * width] * len(uniforms_BT))
        mask_BT = (torch.arange(width) < length).expand(len(uniforms_BT), -1)
        return decisions(drawer, plain.replace(action_mask_BT=mask_BT, uniforms_BT=uniforms_BT)).tolist()

    uniforms_BT = torch.rand(count, width, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    seen: dict[tuple[bool, ...], float] = {}
    for decided in of(uniforms_BT):
        seen[tuple(decided)] = seen.get(tuple(decided), 0.0) + 1 / count
    chances, numbers = zip(*drawer.lots(width), strict=True)
    assert sum(chances) == pytest.approx(1.0, abs=1e-12)
    expected: dict[tuple[bool, ...], float] = {}
    for chance, decided in zip(chances, of(torch.stack(numbers)), strict=True):
        expected[tuple(decided)] = expected.get(tuple(decided), 0.0) + chance
    assert seen.keys() == expected.keys()
    assert seen == pytest.approx(expected, abs=0.015)  # four standard deviations
