import pytest
import torch
from builders import gpt2_policy, tiny_policy
from engines import PREFIXES, assert_same, naive, responses

import tpg.rollouts.transformers as engine_module
from tpg.policies.base import Policy
from tpg.randomness import key, uniforms
from tpg.rollouts.engine import Prefix
from tpg.rollouts.sampling import Sampling
from tpg.rollouts.transformers import Transformers
from tpg.trajectories import Trajectories


@pytest.fixture(scope="module")
def policy() -> Policy:
    return tiny_policy()


@pytest.fixture(scope="module")
def rollout(policy) -> Trajectories:
    return Transformers().build(policy).generate(PREFIXES, Sampling(), version=7)


@pytest.mark.parametrize("share", [True, False])
def test_absolute_positions(monkeypatch, share):
    if not share:
        monkeypatch.setattr(engine_module, "_shared_prefill", lambda *arguments: None)
    policy = gpt2_policy()
    trajectories = Transformers().build(policy).generate(PREFIXES, Sampling())
    assert responses(trajectories) == [naive(policy, wanted, k, Sampling()) for wanted in PREFIXES for k in wanted.keys]
    with torch.no_grad():
        trained_BT = policy.statistics(trajectories, 1.0).logprobs
    torch.testing.assert_close(trajectories.rollout_logprobs_BT, trained_BT, rtol=0, atol=1e-4)


def test_the_prefill_is_shared(policy, rollout, monkeypatch):
    original, batches = engine_module._shared_prefill, []

    def spied(*arguments):
        cache = original(*arguments)
        batches.append((cache.get_seq_length(), cache.layers[0].keys.shape[0]))
        return cache

    monkeypatch.setattr(engine_module, "_shared_prefill", spied)
    assert_same(Transformers().build(policy).generate(PREFIXES, Sampling()), rollout)
    # Made for all but the last token of the prompts, and spread over the eleven responses.
    assert batches == [(4, 11)]


def test_sharing_the_prefill_changes_nothing(policy, rollout, monkeypatch):
    monkeypatch.setattr(engine_module, "_shared_prefill", lambda *arguments: None)
    assert_same(Transformers().build(policy).generate(PREFIXES, Sampling()), rollout)


def test_a_continuation_with_the_parents_numbers_is_the_parent(policy):
    """Given the first n tokens and the parent's numbers from n on, the rest is the parent's."""
    parent = Prefix((40, 41, 42), 20, (key(5),), row=0)
    (whole,) = responses(Transformers().build(policy).generate([parent], Sampling()))
    shifted = uniforms([key(5)], 20)[:, 4:]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine_module, "uniforms", lambda keys, count: shifted[:, :count])
        rest = Prefix((40, 41, 42), 16, (key(5),), row=0, response_ids=tuple(whole[:4]), parent=0)
        (again,) = responses(Transformers().build(policy).generate([rest], Sampling()))
    assert len(whole) > 6
    assert again == whole


class Enough(Exception):  # noqa: N818
    """Raised to stop."""


def test_a_step_may_stop_the_generation(policy, rollout):
    configured = policy.model.generation_config
    steps = []

    def third_step():
        steps.append(policy.model.generation_config is configured)
        if len(steps) == 3:
            raise Enough

    with pytest.raises(Enough):
        Transformers().build(policy).generate(PREFIXES, Sampling(), on_step=third_step)
    assert steps == [False] * 3
    assert policy.model.generation_config is configured
    assert_same(Transformers().build(policy).generate(PREFIXES, Sampling()), rollout)


def test_every_decoding_step_is_told(policy, rollout):
    steps = []
    Transformers(batch_responses=4).build(policy).generate(PREFIXES, Sampling(), on_step=lambda: steps.append(1))
    lengths = rollout.lengths_B.tolist()
    assert len(steps) == max(lengths[:4]) + max(lengths[4:8]) + max(lengths[8:])
