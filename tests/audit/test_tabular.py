"""Small worlds against a second count in plain Python."""

import pytest
import torch
from tables import Count, drawn, method, responses

from tpg.audit.enumeration import Bench
from tpg.audit.exact import true_gradient
from tpg.audit.tabular import Tree, all_tuples, node_values
from tpg.estimators.reinforce import Reinforce
from tpg.kl import KLInReward
from tpg.rollouts.sampling import Sampling

TREES = [Tree(2, 2, False), Tree(3, 3, False), Tree(2, 3, True), Tree(3, 3, True), Tree(4, 2, True), Tree(2, 1, True)]
KINDS = ["dense", "key", "first", "last", "terminal_binary"]
each_tree = pytest.mark.parametrize("tree", TREES, ids=repr)


def test_a_tree_with_an_end_token():
    tree = Tree(vocabulary=2, horizon=2, end=True)
    assert tree.responses == [(0, 0), (0, 1), (1,)]
    assert tree.prefixes == [(), (0,)]
    assert tree.tokens_RT.tolist() == [[0, 0], [0, 1], [1, 0]]
    assert tree.mask_RT.tolist() == [[True, True], [True, True], [True, False]]
    assert tree.state_RT.tolist() == [[0, 1], [0, 1], [0, 0]]
    # Nodes: () and (0,), then the responses.
    assert tree.through_RN.int().tolist() == [[1, 1, 1, 0, 0], [1, 1, 0, 1, 0], [1, 0, 0, 0, 1]]


@each_tree
def test_all_responses_are_there_and_sum_to_one(tree):
    assert tree.responses == responses(tree.vocabulary, tree.horizon, tree.end)
    assert tree.prefixes == sorted({r[:t] for r in tree.responses for t in range(len(r))}, key=lambda p: (len(p), p))
    world = drawn(tree=tree, prompts=2)
    count = Count(world)
    sampled_KR = tree.sampled(world.logits, Sampling())
    assert sampled_KR.sum(-1).tolist() == pytest.approx([1.0, 1.0])
    assert sampled_KR[1].tolist() == pytest.approx([count.probability(1, one) for one in tree.responses])


@pytest.mark.parametrize("sampling", [Sampling(temperature=0.6), Sampling(top_p=0.7), Sampling(top_k=1)], ids=repr)
def test_truncated_and_tempered_sampling_still_sums_to_one(sampling):
    tree = Tree(3, 3, True)
    world = drawn(tree=tree)
    sampled_KR = tree.sampled(world.logits, sampling)
    assert float(sampled_KR.sum()) == pytest.approx(1.0)
    assert sampled_KR.isfinite().all()
    if sampling.top_k == 1:
        bench = Bench(method(Reinforce()), world, sampling)
        assert float(sampled_KR[0, bench.greedy_K[0]]) == 1.0


@each_tree
def test_values_of_nodes(tree):
    world = drawn(tree=tree, prompts=2)
    count = Count(world)
    found = node_values(tree, tree.sampled(world.logits, Sampling()), world.rewards_KR)
    for k in range(2):
        for n, node in enumerate([*tree.prefixes, *tree.responses]):
            behind = [
                (count.probability(k, one), count.reward(k, one), len(one))
                for one in tree.responses
                if one[: len(node)] == node
            ]
            total = sum(p for p, _, _ in behind)
            mean = sum(p * reward for p, reward, _ in behind) / total
            variance = sum(p * (reward - mean) ** 2 for p, reward, _ in behind) / total
            length = sum(p * tokens for p, _, tokens in behind) / total
            assert [float(values[k, n]) for values in found] == pytest.approx([mean, variance, length], abs=1e-12)


def test_values_of_nodes_that_are_never_reached_are_finite():
    tree = Tree(3, 2, False)
    world = drawn(tree=tree)
    for values in node_values(tree, tree.sampled(world.logits, Sampling(top_k=1)), world.rewards_KR):
        assert values.isfinite().all()


def difference(world, value, step=1e-5):
    """Of `value(logits)`, by symmetric differences."""
    found = torch.zeros_like(world.logits)
    for place in all_tuples(list(world.logits.shape)):
        for sign in (1, -1):
            moved = world.logits.clone()
            moved[tuple(place)] += sign * step
            found[tuple(place)] += sign * value(moved) / (2 * step)
    return found.flatten().tolist()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("tree", [Tree(2, 3, True), Tree(3, 2, False)], ids=repr)
def test_the_true_gradient_is_the_slope_of_the_expected_reward(tree, kind):
    world = drawn(tree=tree, prompts=2, reward=kind, reward_scales=(1.0, 3.0))

    def value(logits):
        count = Count(world, logits)
        return sum(count.probability(k, one) * count.reward(k, one) for k in range(2) for one in tree.responses) / 2

    true = true_gradient(Bench(method(Reinforce()), world, Sampling()))
    assert true.norm() > 0
    assert true.tolist() == pytest.approx(difference(world, value), abs=1e-8)


def test_the_true_gradient_under_a_penalty_and_a_temperature():
    world = drawn(tree=Tree(2, 2, True), off_policy=0.3)
    bench = Bench(method(Reinforce(), kl=KLInReward(coefficient=0.4)), world, Sampling(temperature=0.5))
    reference = Count(world, world.reference_logits / 0.5)

    def value(logits):
        count = Count(world, logits / 0.5)
        total = 0.0
        for one in world.tree.responses:
            p, q = count.probability(0, one), reference.probability(0, one)
            total += p * (count.reward(0, one) - 0.4 * float(torch.tensor(p / q).log()))
        return total

    # float32 logarithms above would not do for a slope
    torch.set_default_dtype(torch.float64)
    try:
        expected = difference(world, value)
    finally:
        torch.set_default_dtype(torch.float32)
    assert true_gradient(bench).tolist() == pytest.approx(expected, abs=1e-7)


@pytest.mark.parametrize("tree", [Tree(3, 3, False), Tree(3, 3, True)], ids=repr)
def test_rewards_lie_where_they_should(tree):
    for kind in ("first", "key", "last"):
        world = drawn(tree=tree, prompts=3, reward=kind)
        for k in range(3):
            rewarded = {
                (prefix, token)
                for s, prefix in enumerate(tree.prefixes)
                for token in range(3)
                if world.token_rewards[k, s, token] != 0
            }
            places = {len(prefix) for prefix, _ in rewarded}
            if kind == "first":
                assert places == {0}
            elif kind == "key":
                assert len(places) == 1
            else:
                assert rewarded == {(response[:-1], response[-1]) for response in tree.responses}
        if kind == "key":
            keys = {tuple(drawn(s, tree=tree, reward="key").token_rewards[0].any(-1).tolist()) for s in range(12)}
            assert len(keys) == 3
    dense = drawn(tree=tree, prompts=2, reward_scales=(1.0, 10.0))
    plain = drawn(tree=tree, prompts=2)
    assert torch.allclose(dense.rewards_KR, plain.rewards_KR * torch.tensor([[1.0], [10.0]]))
    for r, response in enumerate(tree.responses):
        hidden = [float(plain.token_rewards[1, tree.prefixes.index(response[:t]), o]) for t, o in enumerate(response)]
        assert float(plain.rewards_KR[1, r]) == pytest.approx(sum(hidden))


def test_a_discounted_objective():
    plain, discounted = drawn(tree=Tree(2, 3, False)), drawn(tree=Tree(2, 3, False), discount=0.5)
    for s, prefix in enumerate(plain.tree.prefixes):
        expected = plain.token_rewards[0, s] * 0.5 ** len(prefix)
        assert discounted.token_rewards[0, s].tolist() == pytest.approx(expected.tolist())


@pytest.mark.parametrize("rate", [0.001, 1 / 3, 0.8, 0.999])
def test_binary_rewards(rate):
    for seed in range(5):
        world = drawn(seed, tree=Tree(3, 3, False), reward="terminal_binary", success_rate=rate)
        assert set(world.rewards_KR.unique().tolist()) == {0.0, 1.0}
        solved = float((world.tree.sampled(world.old_logits, Sampling()) * world.rewards_KR).sum())
        assert solved == pytest.approx(rate, abs=0.05)
    for seed in range(5):  # two responses: one of them is solved, whatever is asked for
        tiny = drawn(seed, tree=Tree(2, 1, False), reward="terminal_binary", success_rate=rate)
        assert sorted(tiny.rewards_KR[0].tolist()) == [0.0, 1.0]


def test_distances_change_nothing_else():
    plain, moved = drawn(4), drawn(4, off_policy=0.3, mismatch=0.2, reference_distance=0.1, critic_error=1.0)
    for name in ("old_logits", "rewards_KR", "token_rewards"):
        assert torch.equal(getattr(plain, name), getattr(moved, name))
    assert torch.equal(plain.logits, plain.old_logits)
    assert torch.equal(plain.rollout_logits, plain.old_logits)
    assert not plain.critic_error_KS.any()
    twice = drawn(4, off_policy=0.6, mismatch=0.4)
    assert torch.allclose(twice.logits - twice.old_logits, 2 * (moved.logits - moved.old_logits))
    assert torch.allclose(twice.rollout_logits - twice.old_logits, 2 * (moved.rollout_logits - moved.old_logits))
    assert not torch.equal(plain.old_logits, drawn(5).old_logits)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_slopes_are_the_derivatives_of_what_the_trainer_reads(temperature):
    world = drawn(tree=Tree(3, 2, True), prompts=2, off_policy=0.5)
    bench = Bench(method(Reinforce()), world, Sampling(temperature=temperature))
    logits = world.logits.clone().requires_grad_()
    read = world.tree.statistics(logits, temperature)
    for values, table in zip((read.logprobs, read.entropy), bench.slopes, strict=True):
        for k, r, t in all_tuples(list(values.shape)).tolist():
            (slope,) = torch.autograd.grad(values[k, r, t], logits, retain_graph=True)
            expected = torch.zeros_like(logits)
            expected[k, world.tree.state_RT[r, t]] += table[k, r, t]
            assert torch.allclose(slope, expected, atol=1e-12)
    norm = bench.score_norms_KR[1, 3]
    old = world.old_logits.clone().requires_grad_()
    (score,) = torch.autograd.grad(world.tree.statistics(old, temperature).logprobs[1, 3].sum(), old)
    assert float(norm) == pytest.approx(float(score.square().sum()))
