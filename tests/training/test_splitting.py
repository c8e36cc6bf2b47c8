"""Which responses share a pass, under bounds on tokens and on responses."""

import pytest
import torch
from builders import record, scored, tiny_policy

from tpg.policies.critic import SeparateCritic, ValueHead
from tpg.policies.shared_prefix import layout_of
from tpg.training.minibatches import experience_loader
from tpg.training.options import Update
from tpg.training.passes import Passes
from tpg.training.splitting import Limits, Splitter
from tpg.trajectories import concatenate

# Prompts of 3, 3, 3, 1, 1, 5 tokens in three groups.
GROUPED = record(
    [[3, 4, 5]] * 3 + [[6]] * 2 + [[7, 8, 9, 10, 11]],
    [[20] * length for length in (4, 2, 6, 1, 1, 3)],
    row_B=torch.tensor([0, 0, 0, 1, 1, 2]),
)
EVERY = torch.arange(6)


def parts(limits, chosen=EVERY, trajectories=GROUPED, **options):
    return [part.tolist() for part in Splitter(trajectories, limits).parts(chosen, **options)]


def shared(tokens=None, responses=None):
    return Limits(tokens, responses, shares_prompts=True)


@pytest.mark.parametrize(
    ("part", "row", "rectangle"),
    [([0], 7, 7), ([0, 1], 9, 14), ([0, 1, 2], 15, 27), ([3, 4], 3, 4), ([2, 3, 5], 19, 33), ([], 0, 0)],
)
def test_the_tokens_computed_by_hand(part, row, rectangle):
    assert Splitter(GROUPED, shared()).cost(part) == row
    assert Splitter(GROUPED, Limits()).cost(part) == rectangle


def test_groups_share_a_part_while_they_fit():
    assert parts(shared(26)) == [[0, 1, 2, 3, 4, 5]]
    assert parts(shared(25)) == [[0, 1, 2, 3, 4], [5]]
    assert parts(shared(15)) == [[0, 1, 2], [3, 4, 5]]
    assert parts(shared()) == [[0, 1, 2, 3, 4, 5]]


def test_a_group_too_large_is_cut_and_its_prompt_computed_again():
    assert parts(shared(10)) == [[0, 1], [2], [3, 4], [5]]
    assert parts(shared(1)) == [[i] for i in range(6)]


def test_responses_are_bounded_beside_the_tokens():
    assert parts(shared(26, 3)) == [[0, 1, 2], [3, 4, 5]]
    assert parts(shared(None, 2)) == [[0, 1], [2], [3, 4], [5]]


def test_groups_stay_whole_where_they_must():
    assert parts(shared(10), whole_groups=True) == [[3, 4], [5], [0, 1, 2]]
    assert parts(shared(10), whole_groups=True, similar_lengths=False) == [[0, 1, 2], [3, 4], [5]]


def test_rectangles_hold_similar_lengths_and_fit():
    assert parts(Limits(12)) == [[3, 4], [1], [5], [0], [2]]
    assert parts(Limits(None, 4)) == [[3, 4, 1], [5, 0, 2]]
    assert parts(Limits(26)) == [[3, 4], [1, 5], [0, 2]]


def test_as_drawn_means_even_and_in_groups():
    assert parts(shared(None, 4), torch.tensor([5, 0, 3, 1, 4, 2]), similar_lengths=False) == [[5, 0, 1], [2, 3, 4]]


def test_empty_parts_make_up_the_number():
    assert parts(shared(26), at_least=3) == [[0, 1, 2, 3, 4, 5], [], []]
    assert parts(Limits(), at_least=4) == [[3], [4, 1], [5], [0, 2]]
    assert parts(shared(26), EVERY[:0]) == []


@pytest.mark.parametrize("shares_prompts", [True, False])
@pytest.mark.parametrize("tokens", [1, 9, 14, 30, None])
@pytest.mark.parametrize("whole_groups", [True, False])
def test_every_response_is_in_one_micro_batch(shares_prompts, tokens, whole_groups):
    everything = torch.ones(6, dtype=torch.bool)
    update = Update(epochs=2, responses_per_minibatch=4, tokens_per_microbatch=tokens)
    trajectories = scored([float(i) for i in range(6)], rows=[0, 0, 1, 1, 2, 2], lengths=[1, 5, 2, 2, 7, 1])
    limits = Limits(tokens, None, shares_prompts)
    made = experience_loader(trajectories, everything, everything, update, 7, 0, 1, whole_groups, limits)
    micro = list(made)
    assert len(micro) == len(made) == 4 * made.parts
    for epoch in (micro[: len(micro) // 2], micro[len(micro) // 2 :]):
        held = [int(reward) for part in epoch if part.trajectories for reward in part.trajectories.rewards_B]
        assert sorted(held) == list(range(6))


def test_less_than_five_per_cent_is_computed_in_vain():
    """Eight prompts of 40 to 200 tokens, eight responses each, of 1 to 120: every prompt once, no padding."""
    generator = torch.Generator().manual_seed(1)
    lengths = torch.randint(1, 121, (64,), generator=generator).tolist()
    prompts = [[10 + row] * (40 + 23 * row) for row in range(8) for _ in range(8)]
    trajectories = record(prompts, [[9] * length for length in lengths], row_B=torch.arange(8).repeat_interleave(8))
    needed = sum(lengths) + sum(40 + 23 * row for row in range(8))
    policy = tiny_policy()
    update = Update(tokens_per_microbatch=2048)
    limits = Limits.of(update, policy, None, trajectories)
    everything = torch.ones(64, dtype=torch.bool)
    made = experience_loader(trajectories, everything, everything, update, 120, 0, 1, limits=limits)
    computed = [len(layout_of(micro.trajectories).ids_S) for micro in made]
    assert len(computed) > 1
    assert max(computed) <= 2048
    assert needed - 64 <= sum(computed) < 1.05 * needed


def test_who_shares_prompts():
    policy = tiny_policy()
    for critic, expected in ((None, True), (ValueHead().build(policy), True), (SeparateCritic().build(policy), False)):
        assert Limits.of(Update(), policy, critic, GROUPED) == Limits(2048, None, expected)
    eager = tiny_policy(attention="eager")
    assert not Limits.of(Update(), eager, None, GROUPED).shares_prompts


@pytest.mark.parametrize("tokens", [1, 10, 26])
def test_passes_give_each_response_its_own(tokens):
    policy = tiny_policy(layers=2)
    order = torch.tensor([5, 0, 3, 1, 4, 2])
    trajectories = concatenate([GROUPED.select(order), GROUPED.select(order)])
    passes = Passes(policy, None, 0.7, Update(tokens_per_microbatch=tokens))
    found = passes.with_logprobs(trajectories, old=True, distribution=True)
    expected = policy.statistics(trajectories, 0.7, distribution=True, layout="padded")
    torch.testing.assert_close(found.old_logprobs_BT, expected.logprobs, rtol=0, atol=1e-4)
    torch.testing.assert_close(found.entropy_BT, expected.entropy, rtol=0, atol=1e-4)


def test_the_bounds_in_words():
    assert Update().at_a_time == "at most 2048 tokens"
    assert Update(responses_per_microbatch=3).at_a_time == "at most 2048 tokens and at most 3 responses"
    assert Update(tokens_per_microbatch=None).at_a_time == "all"
