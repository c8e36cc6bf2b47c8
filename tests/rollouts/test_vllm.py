"""The real vLLM in this process, on a CPU."""

import signal

import pytest
import torch
from builders import prefix, tiny_policy
from scipy.stats import chi2
from vllm_checks import (
    EOS,
    LONG,
    PREFIXES,
    SAMPLINGS,
    SIZES,
    Enough,
    assert_same,
    needs_vllm,
    perturbed,
    reference,
    responses,
)

from tpg.errors import UserError
from tpg.policies.base import LoRA
from tpg.randomness import key
from tpg.rollouts.engine import Prefix
from tpg.rollouts.sampling import GREEDY, Sampling
from tpg.rollouts.vllm import VLLM
from tpg.trajectories import FinishReason

pytestmark = needs_vllm


@pytest.fixture(scope="module")
def engine():
    """One for all: vLLM takes seconds to start."""
    threads, seen = (torch.set_num_threads, torch.get_num_threads()), torch.random.get_rng_state()
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with VLLM(**SIZES).build(tiny_policy()) as built:
        built.generate(PREFIXES[:1], GREEDY)
        assert (torch.set_num_threads, torch.get_num_threads()) == threads
        assert torch.equal(torch.random.get_rng_state(), seen)
        assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == handlers
        yield built
    assert not torch.distributed.is_initialized()


@pytest.fixture
def policy(engine):
    """The engine's; its weights are put back."""
    kept, own = engine.policy, {name: value.clone() for name, value in engine.policy.state_dict().items()}
    yield engine.policy
    engine.policy = kept
    kept.load_state_dict(own)


@pytest.mark.parametrize("sampling", SAMPLINGS, ids=str)
def test_tokens_and_log_probabilities_are_those_of_transformers(engine, policy, sampling):
    made = engine.generate(PREFIXES, sampling, version=3)
    assert_same(made, reference(policy, sampling=sampling))
    assert made.version_B.tolist() == [3] * 14
    assert made.rollout_logprobs_BT.dtype == torch.float32
    if sampling == Sampling():
        assert set(made.finish_reason_B.tolist()) == {FinishReason.STOP, FinishReason.LENGTH}
    with torch.no_grad():
        trained_BT = policy.statistics(made, sampling.temperature or 1.0).logprobs
    torch.testing.assert_close(made.rollout_logprobs_BT, trained_BT, rtol=0, atol=1e-3)


def test_tokens_are_drawn_as_often_as_they_are_likely(engine, policy):
    count = 4000
    with torch.no_grad():
        probs_V = (policy.model(input_ids=torch.tensor([[40, 41]])).logits[0, -1] / 1.5).softmax(-1).double()
    keys = tuple(key(77, i) for i in range(count))
    made = engine.generate([Prefix((40, 41), 1, keys, row=0)], Sampling(temperature=1.5))
    drawn_V = torch.bincount(made.response_ids_BT[:, 0], minlength=len(probs_V)).double()
    often_V = probs_V * count >= 5
    expected = torch.cat([probs_V[often_V], probs_V[~often_V].sum()[None]]) * count
    found = torch.cat([drawn_V[often_V], drawn_V[~often_V].sum()[None]])
    assert often_V.sum() >= 10
    assert float(((found - expected) ** 2 / expected).sum()) < chi2.isf(1e-3, int(often_V.sum()))
    # What another temperature would give is told apart.
    assert float(((found - expected.roll(1)) ** 2 / expected.roll(1)).sum()) > chi2.isf(1e-3, int(often_V.sum()))


def test_the_company_does_not_matter(engine, policy):
    whole = responses(engine.generate(PREFIXES, Sampling()))
    for wanted, rows in zip(PREFIXES, [range(4), range(4, 8), range(8, 11), range(11, 14)], strict=True):
        assert responses(engine.generate([wanted], Sampling())) == [whole[i] for i in rows]
    backwards = responses(engine.generate(PREFIXES[::-1], Sampling()))
    assert backwards == whole[11:] + whole[8:11] + whole[4:8] + whole[:4]


def test_changed_weights_arrive(engine, policy):
    before = responses(engine.generate(PREFIXES, GREEDY))
    optimizer = torch.optim.AdamW(policy.parameters(), lr=0.05)
    with torch.enable_grad():
        policy.model(input_ids=torch.tensor([[40, 41, 42]])).logits.square().sum().backward()
    optimizer.step()
    policy.zero_grad()
    after = engine.generate(PREFIXES, GREEDY)
    assert responses(after) != before
    assert_same(after, reference(policy))


def test_weights_are_handed_over_when_they_change_and_then_alone(engine, policy, monkeypatch):
    handed, load = [], engine._backend.load
    monkeypatch.setattr(engine._backend, "load", lambda weights: handed.append(1) or load(weights))
    engine.generate(PREFIXES[:1], GREEDY)
    handed.clear()
    engine.generate(PREFIXES[:1], GREEDY)
    assert handed == []
    policy.model.lm_head.weight.data[3] += 0.5  # no version counts this
    engine.generate(PREFIXES[:1], GREEDY)
    assert handed == [1]


def test_keys_and_values_of_former_weights_are_forgotten(engine, policy, monkeypatch):
    """Without the reset, vLLM goes on from what the former weights made of a long prompt: the test can fail."""
    vllm, long = engine._backend._engine, PREFIXES[3:]
    engine.generate(long, GREEDY)
    perturbed(policy, 1.15)
    with monkeypatch.context() as patch:
        patch.setattr(vllm, "reset_prefix_cache", lambda: True)
        stale = engine.generate(long, GREEDY)
    engine._loaded = None
    expected = reference(policy, long)
    assert (stale.rollout_logprobs_BT[:, 0] - expected.rollout_logprobs_BT[:, 0]).abs().max() > 0.01
    assert_same(engine.generate(long, GREEDY), expected)


def test_a_group_shares_its_prompt(engine, policy, monkeypatch):
    shared, step = [], engine._backend._engine.step

    def spied():
        outputs = step()
        shared.extend(output.num_cached_tokens for output in outputs)
        return outputs

    engine.generate(PREFIXES[:1], GREEDY)
    engine._loaded = None  # forget
    monkeypatch.setattr(engine._backend._engine, "step", spied)
    made = engine.generate([prefix(LONG, 5, max_tokens=2)], Sampling())
    assert sorted(shared)[-5:] == [0] + [160] * 4  # five blocks of 32; the requests before are the check's
    shared.clear()
    first = tuple(responses(made)[0][:1])
    engine.generate([prefix(LONG, 2, max_tokens=2, response_ids=first, parent=0)], Sampling())
    assert shared == [160, 160]


def test_a_cache_that_is_not_forgotten_is_an_error(engine, policy, monkeypatch):
    perturbed(policy, 1.01)
    monkeypatch.setattr(engine._backend._engine, "reset_prefix_cache", lambda: False)
    with pytest.raises(RuntimeError, match="former weights"):
        engine.generate(PREFIXES, GREEDY)


def test_weights_that_do_not_arrive_are_an_error(engine, policy, monkeypatch):
    perturbed(policy, 1.3)
    with monkeypatch.context() as patch:
        patch.setattr(engine._backend, "load", lambda weights: None)
        with pytest.raises(UserError, match=r"nats a token from the policy's, and 0.01 is allowed"):
            engine.generate(PREFIXES, GREEDY)
    assert_same(engine.generate(PREFIXES, GREEDY), reference(policy))


def test_adapters_are_merged(engine, policy):
    adapted = tiny_policy(lora=LoRA(rank=4))
    engine.policy = adapted
    assert_same(engine.generate(PREFIXES, GREEDY), reference(adapted))
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.3, generator=torch.Generator().manual_seed(0))
    changed = engine.generate(PREFIXES, Sampling())
    assert responses(changed) != responses(reference(policy, sampling=Sampling()))
    assert_same(changed, reference(adapted, sampling=Sampling()))


def test_each_prefix_has_its_own_limit(engine, policy):
    limits = [1, 40, 12, 3]
    prefixes = [Prefix(p.prompt_ids, n, p.keys, p.row) for p, n in zip(PREFIXES, limits, strict=True)]
    made = engine.generate(prefixes, Sampling())
    assert_same(made, reference(policy, prefixes, Sampling()))
    assert made.lengths_B[:4].tolist() == [1] * 4
    assert max(made.lengths_B[11:]) == 3


def test_one_token(engine, policy):
    prefixes = [Prefix(p.prompt_ids, 1, p.keys, p.row) for p in PREFIXES]
    assert_same(engine.generate(prefixes, Sampling()), reference(policy, prefixes, Sampling()))


def test_any_end_token_ends_a_response(engine, policy, monkeypatch):
    seen = responses(engine.generate(PREFIXES, Sampling()))[0][2]
    monkeypatch.setattr(policy.model.generation_config, "eos_token_id", [EOS, seen])
    cut = engine.generate(PREFIXES, Sampling())
    assert cut.lengths_B[0] <= 3
    assert_same(cut, reference(policy, sampling=Sampling()))


def test_continuations(engine, policy):
    whole = responses(engine.generate(PREFIXES, Sampling()))
    long = [i for i, ids in enumerate(whole) if len(ids) > 8][:3]
    prompts = [p.prompt_ids for p in PREFIXES for _ in p.keys]
    prefixes = [
        Prefix(prompts[i], 12, (key(i, 0), key(i, 1)), row=i, response_ids=tuple(whole[i][:n]), parent=i)
        for i, n in zip(long, (5, 1, 8), strict=True)
    ]
    made = engine.generate(prefixes, Sampling())
    assert_same(made, reference(policy, prefixes, Sampling()))
    assert made.position_B.tolist() == [5, 5, 1, 1, 8, 8]


def test_a_step_may_stop_the_generation(engine, policy):
    steps = []

    def third_step():
        steps.append(1)
        if len(steps) == 3:
            raise Enough

    with pytest.raises(Enough):
        engine.generate(PREFIXES, Sampling(), on_step=third_step)
    assert len(steps) == 3
    assert not engine._backend._engine.has_unfinished_requests()
    assert_same(engine.generate(PREFIXES, Sampling()), reference(policy, sampling=Sampling()))


def test_finished_responses_are_told_at_once(engine, policy):
    told, at_step = [], []
    prefixes = [Prefix(p.prompt_ids, n, p.keys, p.row) for p, n in zip(PREFIXES, [1, 40, 12, 3], strict=True)]
    made = engine.generate(prefixes, Sampling(), on_step=lambda: at_step.append(len(told)), on_finished=told.extend)
    assert sorted(response.place for response in told) == list(range(14))
    whole = responses(made)
    assert all(whole[response.place] == list(response.token_ids) for response in told)
    assert all(made.finish_reason_B[response.place] == response.reason for response in told)
    assert 0 < at_step[0] < 14


def test_what_does_not_fit_is_told(engine):
    with pytest.raises(UserError, match="250 tokens and 60 new ones do not fit into 300"):
        engine.generate([prefix([5] * 250, 1, max_tokens=60)], GREEDY)
