"""Weights of single tokens computed by hand: critics, segments, random positions."""

import pydantic
import pytest
import torch
from builders import scored, widened

from tpg.estimators.base import Answers
from tpg.estimators.boundaries import Coin, EveryTokens
from tpg.estimators.gae import GAE
from tpg.estimators.segment import Segment
from tpg.estimators.trepo import TRePOInterpolate, TRePOInverseProbability

NAN = float("nan")
YES, NO = True, False


def numbers(*rows):
    return torch.tensor(rows, dtype=torch.float64)


def valued(*values):
    return Answers(continued_values_K=torch.tensor(values, dtype=torch.float64))


def asked(estimator, trajectories):
    """The requested prefixes as pairs of parent and position."""
    wanted = estimator.requests(trajectories).continuations
    return list(zip(wanted.parent_K.tolist(), wanted.position_K.tolist(), strict=True))


def assert_weights(estimator, trajectories, answers, expected):
    weights_BT = estimator.weights(trajectories, answers)
    torch.testing.assert_close(weights_BT, numbers(*expected), rtol=0, atol=1e-12)


# A critic

CRITIC = [0.5, 0.6, 0.4, 0.7]


@pytest.mark.parametrize(
    ("lam", "gamma", "expected"),
    [
        (1.0, 1.0, [0.5, 0.4, 0.6, 0.3]),
        (0.95, 1.0, [0.4379625, 0.35575, 0.585, 0.3]),
        (0.0, 1.0, [0.1, -0.2, 0.3, 0.3]),
        (1.0, 0.9, [0.229, 0.21, 0.5, 0.3]),
        (0.0, 0.5, [-0.2, -0.4, -0.05, 0.3]),
        (0.5, 0.5, [-0.2984375, -0.39375, 0.025, 0.3]),
    ],
)
def test_gae(lam, gamma, expected):
    trajectories = scored([1.0], lengths=[4], values_BT=numbers(CRITIC))
    assert_weights(GAE(lam=lam, gamma=gamma), trajectories, Answers(), [expected])


@pytest.mark.parametrize("rubbish", [NAN, 1e9])
def test_gae_runs_over_the_tokens_that_the_policy_chose(rubbish):
    trajectories = scored(
        [1.0],
        lengths=[8],
        values_BT=numbers([rubbish, 0.5, 0.6, rubbish, rubbish, 0.4, 0.7, rubbish]),
        action_mask_BT=torch.tensor([[NO, YES, YES, NO, NO, YES, YES, NO]]),
    )
    expected = [0, 0.4379625, 0.35575, 0, 0, 0.585, 0.3, 0]
    assert_weights(GAE(lam=0.95), trajectories, Answers(), [expected])
    assert_weights(GAE(lam=0.95), widened(trajectories), Answers(), [[*expected, 0, 0, 0]])


def test_gae_of_several_lengths_and_an_unscored_one():
    trajectories = scored(
        [1.0, -1.0, NAN], lengths=[3, 1, 2], unscored=(2,), values_BT=numbers([0.5, 0.6, 0.4], [0.25, 9, 9], [1, 2, 9])
    )
    assert_weights(GAE(), trajectories, Answers(), [[0.5, 0.4, 0.6], [-1.25, 0, 0], [0, 0, 0]])


def test_gae_is_not_whitened():
    trajectories = scored([5.0, 7.0], values_BT=numbers([1], [1]))
    assert_weights(GAE(), trajectories, Answers(), [[4], [6]])


def test_what_may_bias_gae():
    assert GAE().needs_critic
    assert GAE().without() == {}
    assert GAE(lam=0.95).without() == {"lambda below 1": GAE()}
    assert GAE(lam=0.95, gamma=0.9).without() == {
        "lambda below 1": GAE(gamma=0.9),
        "discounting": GAE(lam=0.95),
    }


# Segments


def test_segment():
    estimator = Segment(continuations=3, boundaries=EveryTokens(tokens=2))
    trajectories = scored([1.0, 0.0, NAN], lengths=[5, 1, 4], unscored=(2,))
    assert asked(estimator, trajectories) == [(0, 0), (0, 2), (0, 4), (1, 0)]
    assert estimator.requests(trajectories).continuations.count == 3
    assert estimator.requests(trajectories).continuations.max_tokens is None
    answers = valued(0.5, 0.75, 0.25, 0.6)
    assert_weights(estimator, trajectories, answers, [[0.25, 0.25, -0.5, -0.5, 0.75], [-0.6, 0, 0, 0, 0], [0] * 5])
    assert estimator.kept(trajectories, answers).tolist() == [True, True, False]


def test_segment_with_tokens_in_between_that_the_policy_did_not_choose():
    estimator = Segment(boundaries=EveryTokens(tokens=2))
    trajectories = scored([1.0], lengths=[6], action_mask_BT=torch.tensor([[YES, YES, NO, NO, YES, NO]]))
    assert asked(estimator, trajectories) == [(0, 0), (0, 4)]
    assert_weights(estimator, trajectories, valued(0.5, 0.75), [[0.25, 0.25, 0, 0, 0.25, 0]])


def test_a_response_with_a_prefix_of_unknown_value_is_dropped():
    estimator = Segment(boundaries=EveryTokens(tokens=1))
    trajectories = scored([1.0, 3.0], lengths=[2, 2])
    answers = valued(0.5, NAN, 1.0, 2.5)
    assert estimator.kept(trajectories, answers).tolist() == [False, True]
    assert_weights(estimator, trajectories, answers, [[0, 0], [1.5, 0.5]])


@pytest.mark.parametrize(
    ("estimator", "slope"),
    [
        (Segment(boundaries=EveryTokens(tokens=2)), [0, 0, 0, 0, 1]),
        (Segment(boundaries=EveryTokens(tokens=9)), [1, 1, 1, 1, 1]),
        (TRePOInverseProbability(positions=5), [0, 0, 0, 0, 1]),
    ],
    ids=repr,
)
def test_a_responses_own_reward_is_the_value_of_its_end_only(estimator, slope):
    few, many = (
        scored([reward, 0.5], lengths=[5, 1], uniforms_BT=torch.zeros(2, 5, dtype=torch.float64))
        for reward in (1.0, 2.0)
    )
    answers = valued(*[0.5] * len(asked(estimator, few)))
    difference_BT = estimator.weights(many, answers) - estimator.weights(few, answers)
    assert difference_BT.tolist() == [slope, [0] * 5]


def test_nothing_scored_asks_for_nothing():
    trajectories = scored([NAN, NAN], unscored=(0, 1), lengths=[2, 3], uniforms_BT=torch.zeros(2, 3))
    for estimator in (Segment(boundaries=EveryTokens(tokens=1)), TRePOInterpolate(), TRePOInverseProbability()):
        assert asked(estimator, trajectories) == []
        assert_weights(estimator, trajectories, Answers(), [[0] * 3] * 2)


# Random positions


def drawing(uniforms, rewards=(1.0,), **fields):
    """Responses whose tokens have these numbers."""
    lengths = [len(row) for row in uniforms]
    width = max(lengths)
    padded = numbers(*([*row, *[0.0] * (width - len(row))] for row in uniforms))
    return scored(list(rewards), lengths=lengths, uniforms_BT=padded, **fields)


TWO_OF_FIVE = [[0.9, 0.1, 0.5, 0.2, 0.7]]


def test_trepo_at_two_of_five_tokens():
    trajectories = drawing(TWO_OF_FIVE)
    answers = valued(0.2, 0.6, 0.5, 0.3)
    for estimator in (TRePOInterpolate(positions=2, continuations=7), TRePOInverseProbability(positions=2)):
        assert asked(estimator, trajectories) == [(0, 1), (0, 2), (0, 3), (0, 4)]
    assert TRePOInterpolate(continuations=7).requests(trajectories).continuations.count == 7
    assert_weights(TRePOInterpolate(positions=2), trajectories, answers, [[0.4, 0.4, 0.1, -0.2, -0.2]])
    assert_weights(TRePOInverseProbability(positions=2), trajectories, answers, [[0, 1, 0, -0.5, 0]])


def test_trepo_goes_straight_from_one_drawn_token_to_the_next():
    trajectories = drawing([[0.9, 0.1, 0.8, 0.7, 0.2, 0.6, 0.5]])
    expected = [0.3, 0.3, 0.4, 0.5, 0.6, 0.6, 0.6]
    assert_weights(TRePOInterpolate(positions=2), trajectories, valued(0.1, 0.4, 0.2, 0.8), [expected])


def test_trepo_asks_for_a_shared_prefix_once_and_never_for_the_end():
    trajectories = drawing([[0.9, 0.1, 0.2, 0.7, 0.8], [0.9, 0.8, 0.7, 0.2, 0.1], [0.5]], [1.0, 2.0, 3.0])
    estimator = TRePOInverseProbability(positions=2)
    assert asked(estimator, trajectories) == [(0, 1), (0, 2), (0, 3), (1, 3), (1, 4), (2, 0)]
    answers = valued(0.1, 0.5, 0.2, 0.4, 0.6, 0.7)
    assert_weights(estimator, trajectories, answers, [[0, 1, -0.75, 0, 0], [0, 0, 0, 0.5, 3.5], [2.3, 0, 0, 0, 0]])


def test_trepo_draws_all_of_a_short_response():
    trajectories = drawing([[0.5, 0.1, 0.9]], [2.0])
    for estimator in (TRePOInterpolate(positions=3), TRePOInverseProbability(positions=8)):
        assert asked(estimator, trajectories) == [(0, 0), (0, 1), (0, 2)]
        assert_weights(estimator, trajectories, valued(0.5, 0.25, 1.25), [[-0.25, 1.0, 0.75]])


def test_trepo_with_tokens_in_between_that_the_policy_did_not_choose():
    chosen = torch.tensor([[NO, YES, NO, NO, YES, YES, YES, NO]])
    trajectories = drawing([[0.0, 0.2, 0.0, NAN, 0.5, 0.6, 0.1, 0.0]], action_mask_BT=chosen)
    answers = valued(0.2, 0.6, 0.4)
    for estimator in (TRePOInterpolate(positions=2), TRePOInverseProbability(positions=2)):
        assert asked(estimator, trajectories) == [(0, 1), (0, 4), (0, 6)]
    expected = [0, 0.4, 0, 0, 0.4 + 0.2 / 3, 0.4 + 0.4 / 3, 0.6, 0]
    assert_weights(TRePOInterpolate(positions=2), trajectories, answers, [expected])
    assert_weights(TRePOInverseProbability(positions=2), trajectories, answers, [[0, 0.8, 0, 0, 0, 0, 1.2, 0]])


def test_trepo_breaks_ties_by_position():
    estimator = TRePOInterpolate(positions=2)
    assert estimator.drawn(drawing([[0.5, 0.5, 0.5], [0.5, 0.5, 0.1]], [1.0, 1.0])).tolist() == [
        [YES, YES, NO],
        [YES, NO, YES],
    ]
    assert estimator.drawn(drawing([[0.5] * 300])).nonzero()[:, 1].tolist() == [0, 1]


@pytest.mark.parametrize(("positions", "length"), [(1, 1), (1, 3), (2, 1), (2, 2), (2, 3), (3, 3), (2, 4), (9, 4)])
def test_the_lots_of_trepo_draw_every_set_of_tokens_equally_often(positions, length):
    estimator = TRePOInterpolate(positions=positions)
    lots = estimator.lots(4)
    sets = {}
    for chance, lot in lots:
        drawn = tuple(estimator.drawn(drawing([lot[:length].tolist()]))[0].tolist())
        assert sum(drawn) == min(positions, length)
        sets[drawn] = sets.get(drawn, 0.0) + chance
    assert len(lots) == 24
    assert sum(sets.values()) == pytest.approx(1.0)
    assert list(sets.values()) == pytest.approx([1 / len(sets)] * len(sets))


def test_what_may_bias_trepo():
    exact = TRePOInverseProbability(positions=3, continuations=2)
    assert TRePOInterpolate(positions=3, continuations=2).without() == {"interpolation": exact}
    assert exact.without() == {}


def test_who_decides_by_lot():
    deciding = [Segment(boundaries=Coin(probability=0.5)), TRePOInterpolate(), TRePOInverseProbability()]
    assert all(estimator.draws for estimator in deciding)
    assert not any(estimator.draws for estimator in [GAE(), Segment(boundaries=EveryTokens(tokens=2))])


@pytest.mark.parametrize(
    ("option", "fields"),
    [
        (GAE, {"lam": 1.1}),
        (GAE, {"gamma": 0.0}),
        (GAE, {"gamma": 1.1}),
        (Segment, {"boundaries": GAE()}),
        (Segment, {"continuations": 0, "boundaries": EveryTokens(tokens=2)}),
        (TRePOInterpolate, {"positions": 0}),
        (TRePOInverseProbability, {"continuations": 0}),
    ],
)
def test_options_are_checked(option, fields):
    with pytest.raises(pydantic.ValidationError, match=next(iter(fields))):
        option(**fields)
