"""Where a response is cut: literal places, and nothing that lies ahead has a say."""

import pydantic
import pytest
import torch
from builders import record

from tpg.estimators.boundaries import Coin, Delimiter, EveryTokens

YES, NO = True, False
BOUNDARIES = [EveryTokens(tokens=2), Delimiter(token_ids=[5, 9]), Coin(probability=0.5)]


def uniforms(*rows):
    return torch.tensor(rows, dtype=torch.float64)


def written(*responses, **fields):
    return record([[2]] * len(responses), [list(response) for response in responses], pad=5, **fields)


def test_a_boundary_every_two_tokens():
    trajectories = written([1, 1, 1, 1, 1], [1, 1, 1, 1], [1])
    assert EveryTokens(tokens=2).at(trajectories).tolist() == [
        [NO, NO, YES, NO, YES],
        [NO, NO, YES, NO, NO],
        [NO, NO, NO, NO, NO],
    ]


def test_tokens_that_the_policy_did_not_choose_are_not_counted():
    trajectories = written([1] * 6, action_mask_BT=torch.tensor([[YES, YES, NO, YES, YES, YES]]))
    assert EveryTokens(tokens=2).at(trajectories).tolist() == [[NO, NO, NO, YES, NO, YES]]


def test_a_boundary_after_every_delimiter_but_at_the_end():
    trajectories = written([5, 3, 9, 5], [3, 3, 3, 5], [3, 5])
    assert Delimiter(token_ids=[5, 9]).at(trajectories).tolist() == [
        [NO, YES, NO, YES],
        [NO, NO, NO, NO],
        [NO, NO, NO, NO],
    ]


def test_a_boundary_where_the_coin_says_so():
    uniforms_BT = uniforms([0.1, 0.4, 0.6, 0.49], [0.1, 0.1, 0.1, 0.1])
    trajectories = written([1] * 4, [1] * 2, uniforms_BT=uniforms_BT)
    assert Coin(probability=0.5).at(trajectories).tolist() == [[NO, YES, NO, YES], [NO, YES, NO, NO]]


@pytest.mark.parametrize("boundaries", BOUNDARIES, ids=repr)
def test_what_lies_ahead_moves_no_boundary(boundaries):
    uniforms_BT = uniforms([0.9, 0.2, 0.7, 0.1, 0.3, 0.8, 0.4])
    long = written([1, 5, 1, 9, 5, 1, 1], uniforms_BT=uniforms_BT)
    assert boundaries.at(long).any()
    for length in range(1, 7):
        for filler in (1, 5):
            response = [1, 5, 1, 9, 5, 1, 1][:length] + [filler] * (7 - length)
            other = written(response, uniforms_BT=uniforms_BT)
            assert torch.equal(boundaries.at(other)[:, : length + 1], boundaries.at(long)[:, : length + 1])
        short = written([1, 5, 1, 9, 5, 1, 1][:length], uniforms_BT=uniforms_BT[:, :length])
        assert torch.equal(boundaries.at(short), boundaries.at(long)[:, :length])


def test_the_lots_of_a_coin():
    coin = Coin(probability=0.25)
    outcomes = {
        tuple(coin.at(written([1] * 3, uniforms_BT=lot[None]))[0].tolist()): chance for chance, lot in coin.lots(3)
    }
    assert outcomes == pytest.approx(
        {(NO, YES, YES): 0.0625, (NO, YES, NO): 0.1875, (NO, NO, YES): 0.1875, (NO, NO, NO): 0.5625}
    )
    assert [chance for chance, _ in Coin(probability=1.0).lots(4)] == [1.0]
    assert [(chance, lot.tolist()) for chance, lot in coin.lots(1)] == [(1.0, [0.0])]
    assert len(EveryTokens(tokens=2).lots(4)) == len(Delimiter(token_ids=[1]).lots(4)) == 1


@pytest.mark.parametrize(
    ("option", "fields"),
    [
        (EveryTokens, {"tokens": 0}),
        (Delimiter, {"token_ids": []}),
        (Coin, {"probability": 0.0}),
        (Coin, {"probability": 1.5}),
    ],
)
def test_options_are_checked(option, fields):
    with pytest.raises(pydantic.ValidationError, match=next(iter(fields))):
        option(**fields)
