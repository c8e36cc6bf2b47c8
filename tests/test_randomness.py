"""Random numbers are pinned: a change of generator or of its keys would make resumed runs draw other numbers."""

import pytest

from tpg.randomness import Purpose, key, permutation, torch_seed, uniforms


@pytest.mark.parametrize(
    ("identity", "expected"),
    [
        ((), 149489604723985495754514632671196997322),
        ((0,), 274724611455145120356117287798779544776),
        ((-1,), 211758678556769201542979101025463676873),
    ],
)
def test_keys_are_pinned(identity, expected):
    assert key(*identity) == expected


@pytest.mark.parametrize(
    ("identity", "expected"),
    [
        ((0,), [float.fromhex("0x1.0c97a3a720915p-1"), float.fromhex("0x1.b692e6055206ep-1")]),
        ((1, 2, 3), [0.5820700278594911, 0.83131338559194, 0.048709001519276485]),
    ],
)
def test_uniforms_are_pinned(identity, expected):
    assert uniforms([key(*identity)], len(expected)).tolist() == [expected]


def test_permutations_and_seeds_are_pinned():
    assert permutation(8, 0, 1) == [4, 5, 3, 1, 2, 6, 7, 0]
    assert torch_seed(1, 2) == 3437931087588335093


def test_purposes_are_pinned():
    assert {purpose.name: purpose.value for purpose in Purpose} == {
        "PROMPT_ORDER": 1,
        "TRAINING_ROLLOUT": 2,
        "EVALUATION_ROLLOUT": 3,
        "CONTINUATION": 4,
        "MINIBATCHES": 5,
        "INITIALIZATION": 6,
        "LOTS": 8,
    }


def test_a_number_does_not_depend_on_how_many_are_drawn():
    many = uniforms([key(5)], 1000)
    for count in (1, 2, 3, 5, 999):
        assert uniforms([key(5)], count).tolist() == many[:, :count].tolist()


def test_a_number_does_not_depend_on_the_other_keys():
    together = uniforms([key(1), key(2), key(3)], 4)
    assert together.shape == (3, 4)
    assert together[1].tolist() == uniforms([key(2)], 4)[0].tolist()


def test_numbers_are_uniform():
    numbers = uniforms([key(7, i) for i in range(100)], 100).flatten()
    assert len(numbers.unique()) == 10_000
    assert 0 <= numbers.min() < 1e-3
    assert 1 - 1e-3 < numbers.max() < 1
    counts = numbers.histc(10, 0, 1)
    assert ((counts - 1000).square() / 1000).sum() < 27.9  # chi-square, 9 degrees of freedom, p = 0.001


def test_keys_are_distinct():
    identities = [(a, b, c) for a in range(-3, 7) for b in range(10) for c in range(10)]
    identities += [(a, b) for a in range(-3, 7) for b in range(10)] + [(2**63 - 1,), (-(2**63),), (256,), (1,)]
    keys = [key(*identity) for identity in identities]
    assert len(set(keys)) == len(identities) == 1104
    assert all(0 <= k < 2**128 for k in keys)


@pytest.mark.parametrize("size", [0, 1, 2, 100])
def test_permutations_hold_every_number_once(size):
    assert sorted(permutation(size, 3)) == list(range(size))


def test_seeds_fit_torch():
    assert all(0 <= torch_seed(i) < 2**63 for i in range(100))
