import pytest
import torch

from tpg.aggregation import Constant, MinibatchSize, SequenceMean, SequenceSum, TokenMean

NAN = float("nan")
SIZE = MinibatchSize(responses=2, tokens=6, max_response_tokens=4)
MASK = torch.tensor([[True, True, False, False], [True, True, True, True]])

# Of the losses [[1, 2], [3, 4, 5, 6]]: the number, and each token's factor in it.
CASES = [
    (TokenMean(), 3.5, [[1 / 6] * 2 + [0, 0], [1 / 6] * 4]),
    (SequenceSum(), 10.5, [[1 / 2] * 2 + [0, 0], [1 / 2] * 4]),
    (SequenceMean(), 3.0, [[1 / 4] * 2 + [0, 0], [1 / 8] * 4]),
    (Constant(), 2.625, [[1 / 8] * 2 + [0, 0], [1 / 8] * 4]),
]
each = pytest.mark.parametrize("aggregation", [case[0] for case in CASES], ids=repr)


def losses(hidden: float = 0.0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.tensor([[1, 2, hidden, hidden], [3, 4, 5, 6]], dtype=dtype, requires_grad=True)


@pytest.mark.parametrize("hidden", [0.0, 1e9, NAN, float("inf")])
@pytest.mark.parametrize(("aggregation", "expected", "factors"), CASES)
def test_value_and_gradient(aggregation, expected, factors, hidden):
    losses_BT = losses(hidden)
    total = aggregation(losses_BT, MASK, SIZE)
    total.backward()
    assert total.item() == pytest.approx(expected)
    assert losses_BT.grad.tolist() == [pytest.approx(row) for row in factors]


@pytest.mark.parametrize("split", [[[0], [1]], [[1], [0]], [[0, 1], []], [[], [1], [], [0]]], ids=str)
@pytest.mark.parametrize(("aggregation", "expected", "factors"), CASES)
def test_micro_batches_add_up(aggregation, expected, factors, split):
    losses_BT = losses(NAN)
    shares = [aggregation(losses_BT[rows], MASK[rows], SIZE) for rows in split]
    sum(shares).backward()
    assert sum(share.item() for share in shares) == pytest.approx(expected)
    assert losses_BT.grad.tolist() == [pytest.approx(row) for row in factors]


@each
def test_widths_of_micro_batches_do_not_matter(aggregation):
    narrow = aggregation(losses()[:1, :2], MASK[:1, :2], SIZE)
    assert narrow.item() == pytest.approx(aggregation(losses(NAN)[:1], MASK[:1], SIZE).item())


def test_tokens_are_averaged_over_the_whole_minibatch():
    size = MinibatchSize(responses=2, tokens=1000, max_response_tokens=900)
    parts = [torch.full((1, 100), 2.0), torch.full((1, 900), 0.5)]
    shares = [TokenMean()(part, torch.ones_like(part, dtype=torch.bool), size).item() for part in parts]
    assert sum(shares) == pytest.approx(0.65)


@each
def test_a_response_that_is_wholly_hidden_adds_nothing(aggregation):
    losses_BT = torch.full((2, 4), NAN, requires_grad=True)
    total = aggregation(losses_BT, torch.zeros(2, 4, dtype=torch.bool), SIZE)
    total.backward()
    assert total.item() == 0.0
    assert losses_BT.grad.tolist() == [[0.0] * 4] * 2


@each
def test_nothing_to_learn_from_is_zero(aggregation):
    nothing = aggregation(torch.zeros(0, 3), torch.zeros(0, 3, dtype=torch.bool), MinibatchSize(0, 0, 4))
    assert nothing.item() == 0.0


@pytest.mark.parametrize(
    ("aggregation", "expected"),
    [(SequenceSum(), 0.1 / 3), (Constant(), 0.1 / 21), (TokenMean(), 0.1 / 11), (SequenceMean(), 0.1 / 3)],
    ids=repr,
)
def test_double_precision_is_kept(aggregation, expected):
    losses_BT = torch.tensor([[0.1]], dtype=torch.float64)
    total = aggregation(losses_BT, torch.ones(1, 1, dtype=torch.bool), MinibatchSize(3, 11, 7))
    assert total.dtype == torch.float64
    assert total.item() == pytest.approx(expected, rel=1e-15, abs=0)
