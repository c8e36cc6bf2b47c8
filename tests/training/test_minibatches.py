"""How an iteration is cut into minibatches and micro-batches, with and without groups that stay whole."""

import pytest
import torch
from builders import scored

from tpg.aggregation import MinibatchSize
from tpg.errors import UserError
from tpg.randomness import Purpose, permutation
from tpg.training.minibatches import experience_loader
from tpg.training.options import Update

ROWS = [4, 4, 9, 9, 4, 4, 7, 7, 7, 9, 9, 7]
LENGTHS = [2, 1, 3, 3, 1, 2, 4, 1, 1, 3, 2, 1]
GROUPS = {frozenset({0, 1, 4, 5}), frozenset({2, 3, 9, 10}), frozenset({6, 7, 8, 11})}


def batch(rows=ROWS, lengths=LENGTHS):
    """Three groups of four, mixed; each response is known by its reward, its index."""
    return scored([float(i) for i in range(len(rows))], rows=rows, lengths=lengths)


def loader(trajectories, update, *, kept=None, needed=None, whole_groups=True, iteration=1):
    everything = torch.ones(len(trajectories), dtype=torch.bool)
    kept_B = everything if kept is None else kept
    needed_B = kept_B if needed is None else needed
    return experience_loader(trajectories, kept_B, needed_B, update, 5, 0, iteration, whole_groups)


def but(*left_out):
    return torch.tensor([i not in left_out for i in range(len(ROWS))])


def indices(micro):
    return [] if micro.trajectories is None else [int(reward) for reward in micro.trajectories.rewards_B]


def minibatches(made):
    """The responses of each micro-batch, by minibatch."""
    parts = [indices(micro) for micro in made]
    return [parts[i : i + made.parts] for i in range(0, len(parts), made.parts)]


@pytest.mark.parametrize("micro", [1, 3, 4, 5, 8, 16])
@pytest.mark.parametrize("per_minibatch", [None, 4, 8, 12, 100])
def test_groups_stay_whole(micro, per_minibatch):
    update = Update(epochs=2, responses_per_minibatch=per_minibatch, responses_per_microbatch=micro)
    made = loader(batch(), update)
    cut = minibatches(made)
    assert len(made) == len(list(made)) == len(cut) * made.parts
    assert len(cut) == update.steps(12)
    for epoch in (cut[: len(cut) // 2], cut[len(cut) // 2 :]):
        assert sorted(i for parts in epoch for part in parts for i in part) == list(range(12))
    for parts in cut:
        assert sum(map(len, parts)) <= min(per_minibatch or 12, 12)
        for part in parts:
            inside = [group for group in GROUPS if group & set(part)]
            assert set(part) == set().union(*inside)
            assert len(part) <= micro or len(inside) == 1


def test_as_many_groups_to_a_micro_batch_as_fit_short_ones_first():
    made = loader(batch(), Update(responses_per_microbatch=8))
    assert made.parts == 2
    assert [sorted(part) for part in minibatches(made)[0]] == [[0, 1, 2, 3, 4, 5, 9, 10], [6, 7, 8, 11]]
    widths = [micro.trajectories.response_ids_BT.shape[1] for micro in made]
    assert widths == [3, 4]


def test_every_minibatch_has_as_many_parts():
    """Two minibatches, of two groups and of one."""
    made = loader(batch(), Update(responses_per_minibatch=8, responses_per_microbatch=4))
    assert made.parts == 2
    assert [[len(part) for part in parts] for parts in minibatches(made)] == [[4, 4], [4, 0]]
    assert [micro.size.responses for micro in made] == [8, 8, 4, 4]


def test_groups_that_lost_responses_share_a_micro_batch():
    made = loader(batch(), Update(responses_per_microbatch=5), kept=but(0, 1, 2, 6, 7))
    assert [sorted(part) for part in minibatches(made)[0]] == [[4, 5, 8, 11], [3, 9, 10]]
    assert [micro.size for micro in made] == [MinibatchSize(responses=7, tokens=13, max_response_tokens=5)] * 2


def test_what_is_not_needed_counts_and_is_in_no_part():
    made = loader(batch(), Update(responses_per_microbatch=4), needed=but(0, 1, 4, 5))
    assert sorted(i for part in minibatches(made)[0] for i in part) == [2, 3, 6, 7, 8, 9, 10, 11]
    assert made.parts == 2
    assert next(iter(made)).size.responses == 12


def test_nothing_needed_is_one_empty_part_a_minibatch():
    made = loader(batch(), Update(responses_per_minibatch=4), needed=torch.zeros(12, dtype=torch.bool))
    assert minibatches(made) == [[[]], [[]], [[]]]
    assert [micro.size.responses for micro in made] == [4, 4, 4]


def test_the_same_prompt_drawn_twice_is_two_groups():
    trajectories = batch().replace(row_B=torch.full((12,), 3), draw_B=torch.tensor(ROWS))
    made = loader(trajectories, Update(responses_per_microbatch=4))
    assert {frozenset(part) for part in minibatches(made)[0]} == GROUPS


def test_groups_are_shuffled_anew_each_epoch_and_iteration():
    update = Update(epochs=6, responses_per_minibatch=4)
    first = minibatches(loader(batch(), update))
    orders = {tuple(min(part) for [part] in first[i : i + 3]) for i in range(0, 18, 3)}
    assert len(orders) > 1
    assert first == minibatches(loader(batch(), update))
    assert first != minibatches(loader(batch(), update, iteration=2))


@pytest.mark.parametrize("per_minibatch", [1, 3, 6, 10])
def test_a_minibatch_that_would_cut_a_group_is_refused(per_minibatch):
    update = Update(responses_per_minibatch=per_minibatch)
    with pytest.raises(UserError, match=rf"responses_per_minibatch={per_minibatch}: .* multiple of .*=4"):
        loader(batch(), update)
    assert len(loader(batch(), update, whole_groups=False).minibatches) == update.steps(12)


@pytest.mark.parametrize("micro", [1, 3, 5, 16])
@pytest.mark.parametrize("per_minibatch", [None, 5])
def test_otherwise_responses_are_shuffled_and_cut_evenly(micro, per_minibatch):
    kept, needed = but(3), but(3, 8, 10)
    update = Update(epochs=2, responses_per_minibatch=per_minibatch, responses_per_microbatch=micro)
    made = loader(batch(), update, kept=kept, needed=needed, whole_groups=False)
    expected = []
    for epoch in range(2):
        order = permutation(12, 0, Purpose.MINIBATCHES, 1, epoch)
        for start in range(0, 12, per_minibatch or 12):
            chosen = [i for i in order[start : start + (per_minibatch or 12)] if i not in (3, 8, 10)]
            expected.append(sorted(chosen, key=lambda i: LENGTHS[i]))
    assert [[i for part in parts for i in part] for parts in minibatches(made)] == expected
    largest = max(map(len, expected))
    assert made.parts == -(-largest // micro)
    for parts in minibatches(made):
        assert max(map(len, parts)) - min(map(len, parts)) <= 1
