import copy
import math

import pytest
import torch
from builders import gpt2_policy, prefix, tiny_policy
from engines import EOS, PREFIXES, assert_same, naive, responses
from transformers import AutoConfig, AutoModelForCausalLM

from tpg.policies.attention import FAMILIES
from tpg.policies.base import LoRA, Policy
from tpg.randomness import key
from tpg.rollouts.engine import Prefix
from tpg.rollouts.native import waiting
from tpg.rollouts.native.engine import Native, NativeEngine
from tpg.rollouts.sampling import GREEDY, Sampling
from tpg.rollouts.transformers import Transformers
from tpg.trajectories import Trajectories


@pytest.fixture(scope="module")
def policy() -> Policy:
    return tiny_policy()


@pytest.fixture(scope="module")
def rollout(policy) -> Trajectories:
    return Transformers().build(policy).generate(PREFIXES, Sampling())


def family_policy(kind: str, **fields) -> Policy:
    """A small model of a family, with more heads than key-value heads."""
    config = AutoConfig.for_model(
        kind,
        vocab_size=97,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=12,
        max_position_embeddings=128,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=None,
        **fields,
    )
    config._attn_implementation = "sdpa"
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config).double()
        with torch.no_grad():
            for parameter in model.parameters():  # fresh norms are all ones or zeros, which hides mistakes
                parameter.add_(0.2 * torch.randn_like(parameter))
    model.generation_config.eos_token_id = [1, *range(60, 70)]
    return Policy(model, tiny_policy().tokenizer)


@pytest.mark.parametrize("kind", sorted(FAMILIES))
def test_families(kind):
    policy = family_policy(kind, **({"sliding_window": 64} if kind in ("mistral", "gemma3_text") else {}))
    engine = Native(batch_responses=5, max_prompt_tokens=8, max_response_tokens=40).build(policy)
    assert isinstance(engine, NativeEngine)
    rollout = engine.generate(PREFIXES, Sampling())
    expected = [naive(policy, wanted, k, Sampling()) for wanted in PREFIXES for k in wanted.keys]
    ends = policy.end_ids
    cut = [ids[: next((t + 1 for t, i in enumerate(ids) if i in ends), len(ids))] for ids in expected]
    assert responses(rollout) == cut
    assert len({len(ids) for ids in cut}) > 2
    with torch.no_grad():
        trained_BT = policy.statistics(rollout, 1.0).logprobs
    torch.testing.assert_close(rollout.rollout_logprobs_BT, trained_BT.float(), rtol=0, atol=1e-6)


def forks(rollout: Trajectories, rows, positions, count=2) -> list[Prefix]:
    """Continuations of these responses from these positions."""
    made = []
    for i in rows:
        prompt = rollout.prompt_ids_BP[i][rollout.prompt_mask_BP[i]].tolist()
        given = rollout.response_ids_BT[i].tolist()
        for n in positions:
            if n < rollout.lengths_B[i]:
                keys = tuple(key(7, i, n, number) for number in range(count))
                made.append(Prefix(tuple(prompt), 15, keys, int(rollout.row_B[i]), 0, tuple(given[:n]), parent=i))
    return made


@pytest.mark.parametrize("lanes", [pytest.param(1, marks=pytest.mark.long), 2, 7, 128])
def test_forks_read_nothing_again(policy, rollout, lanes, monkeypatch):
    engine = Native(batch_responses=lanes).build(policy)
    assert_same(engine.generate(PREFIXES, Sampling(), retain=True), rollout)
    prefixes = forks(rollout, range(11), [0, 1, 4, 17])
    assert {len(wanted.response_ids) for wanted in prefixes} == {0, 1, 4, 17}
    expected = Transformers().build(policy).generate(prefixes, Sampling())
    with monkeypatch.context() as patch:
        patch.setattr(waiting.Waiting, "_read", None)  # would be called to read a prefix
        forked = engine.generate(prefixes, Sampling())
        assert_same(forked, expected)
    assert forked.position_B.tolist() == [len(wanted.response_ids) for wanted in prefixes for _ in wanted.keys]
    engine.release()
    assert_same(engine.generate(prefixes, Sampling()), expected)


def test_a_fork_of_something_else_is_read(policy, rollout):
    """What was kept is used for the very same tokens only."""
    engine = Native().build(policy)
    engine.generate(PREFIXES, Sampling(), retain=True)
    row = next(i for i in range(11) if rollout.lengths_B[i] > 6)
    (right,) = forks(rollout, [row], [5])
    other_tokens = Prefix(right.prompt_ids, 9, right.keys, 0, 0, (*right.response_ids[:-1], 77), parent=row)
    other_prompt = Prefix((33, *right.prompt_ids), 9, right.keys, 0, 0, right.response_ids, parent=row)
    nobody = Prefix(right.prompt_ids, 9, right.keys, 0, 0, right.response_ids, parent=99)
    reference = Transformers().build(policy)
    for wanted in (other_tokens, other_prompt, nobody):
        both = [wanted, right]
        assert_same(engine.generate(both, Sampling()), reference.generate(both, Sampling()))


def test_the_whole_response_can_be_continued(policy, rollout):
    """From its very end nothing was kept: the last token has not been fed."""
    engine = Native().build(policy)
    engine.generate(PREFIXES, Sampling(), retain=True)
    row = next(i for i in range(11) if responses(rollout)[i][-1] != EOS)
    end = Prefix(PREFIXES[0].prompt_ids, 5, (key(1),), 0, 0, tuple(responses(rollout)[row]), parent=row)
    assert_same(engine.generate([end], Sampling()), Transformers().build(policy).generate([end], Sampling()))


def test_a_prompt_is_read_once_whatever_the_lanes(policy, monkeypatch):
    read = []
    original = waiting.Waiting._read

    def spied(self, prefixes):
        read.extend(wanted.row for wanted in prefixes)
        original(self, prefixes)

    monkeypatch.setattr(waiting.Waiting, "_read", spied)
    group = [prefix([40, 41, 42], 9, row=0), prefix([50, 51], 9, row=1)]
    for lanes in (1, 4, 64):
        read.clear()
        Native(batch_responses=lanes).build(policy).generate(group, Sampling())
        assert sorted(read) == [0, 1]


def test_long_prompts_are_read_in_several_passes(policy, rollout, monkeypatch):
    monkeypatch.setattr(waiting, "READ_TOKENS", 5)
    assert_same(Native().build(policy).generate(PREFIXES, Sampling()), rollout)


def test_responses_that_all_end_at_their_first_token(policy):
    ending = tiny_policy()
    ending.model.generation_config.eos_token_id = list(range(len(ending.tokenizer)))
    for lanes in (1, 3, 128):
        engine = Native(batch_responses=lanes).build(ending)
        rollout = engine.generate(PREFIXES, Sampling(), retain=True)
        assert rollout.lengths_B.tolist() == [1] * 11
        again = engine.generate(forks(rollout, range(11), [0]), Sampling())
        assert again.lengths_B.tolist() == [1] * 22


def test_prompts_of_very_different_lengths(policy):
    wanted = [prefix([40], 3, row=0), prefix(list(range(3, 90)) * 4, 5, row=1), prefix([9, 8], 1, row=2)]
    expected = Transformers().build(policy).generate(wanted, Sampling())
    for lanes in (2, 128):
        assert_same(Native(batch_responses=lanes).build(policy).generate(wanted, Sampling()), expected)


def test_sampled_tokens_follow_the_distribution(policy):
    draws = 4000
    wanted = Prefix((40, 41), 1, tuple(key(3, i) for i in range(draws)), row=0)
    rollout = Native(batch_responses=512).build(policy).generate([wanted], Sampling(temperature=1.3))
    with torch.no_grad():
        probs_V = (policy.model(input_ids=torch.tensor([[40, 41]])).logits[0, -1] / 1.3).softmax(-1)
    counts_V = torch.bincount(rollout.response_ids_BT[:, 0], minlength=len(probs_V)).double()
    expected_V = draws * probs_V.double()
    common_V = expected_V > 5
    statistic = ((counts_V - expected_V).square() / expected_V)[common_V].sum()
    freedom = int(common_V.sum())
    assert freedom > 20
    assert abs(float(statistic) - freedom) < 4 * math.sqrt(2 * freedom)


def test_finished_responses_are_told_once_and_early(policy, rollout):
    told, seen_at = {}, []
    steps = []

    def on_finished(finished):
        for response in finished:
            assert response.place not in told
            told[response.place] = response
            seen_at.append(len(steps))

    options = Native(batch_responses=4)
    options.build(policy).generate(PREFIXES, Sampling(), on_step=lambda: steps.append(1), on_finished=on_finished)
    assert [list(told[place].token_ids) for place in range(11)] == responses(rollout)
    assert [told[place].reason for place in range(11)] == rollout.finish_reason_B.tolist()
    assert seen_at[0] < len(steps) / 2


def test_a_step_may_stop_the_generation(policy, rollout):
    class Enough(Exception):  # noqa: N818
        pass

    def stop():
        raise Enough

    engine = Native().build(policy)
    with pytest.raises(Enough):
        engine.generate(PREFIXES, Sampling(), on_step=stop)
    assert_same(engine.generate(PREFIXES, Sampling()), rollout)


def test_shorter_weights_are_a_copy_that_follows_the_policy():
    policy = tiny_policy()
    engine = Native(dtype="bfloat16").build(policy)
    before = engine.generate(PREFIXES, GREEDY)
    assert {parameter.dtype for parameter in policy.parameters()} == {torch.float32}
    rounded = copy.deepcopy(policy).to(torch.bfloat16)
    assert_close_logprobs(before, rounded, 0.1)
    with torch.no_grad():
        policy.model.lm_head.weight.mul_(-1)
    after = engine.generate(PREFIXES, GREEDY)
    assert responses(after) != responses(before)
    assert_close_logprobs(after, copy.deepcopy(policy).to(torch.bfloat16), 0.1)


def assert_close_logprobs(rollout: Trajectories, policy: Policy, tolerance: float) -> None:
    with torch.no_grad():
        trained_BT = policy.statistics(rollout, 1.0).logprobs
    gap_BT = (rollout.rollout_logprobs_BT - trained_BT.float()).abs()
    assert 0 < float(gap_BT[rollout.action_mask_BT].mean()) < tolerance


def test_under_mixed_precision_the_weights_are_short(policy):
    engine = Native().build(policy)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        short = engine.generate(PREFIXES, GREEDY)
    assert next(engine._weights.decoder.trunk.parameters()).dtype == torch.bfloat16
    full = engine.generate(PREFIXES, GREEDY)
    gap = (short.rollout_logprobs_BT[:, 0] - full.rollout_logprobs_BT[:, 0]).abs()
    assert 0 < gap.max() < 0.1
    with torch.autocast("cpu", dtype=torch.bfloat16):
        held = Native(dtype="policy").build(policy).generate(PREFIXES, GREEDY)
    assert torch.equal(held.rollout_logprobs_BT, full.rollout_logprobs_BT)


def test_adapters_are_merged_into_shorter_weights():
    policy = tiny_policy()
    policy.model = LoRA(rank=2, alpha=16).wrap(policy.model)
    with torch.no_grad():
        for name, parameter in policy.named_parameters():
            if "lora_B" in name:
                parameter.normal_(generator=torch.Generator().manual_seed(0)).mul_(0.05)
    exact = Native(dtype="policy").build(policy).generate(PREFIXES, GREEDY)
    assert_same(exact, Transformers().build(policy).generate(PREFIXES, GREEDY))
    short = Native(dtype="bfloat16").build(policy).generate(PREFIXES, GREEDY)
    with policy.model.disable_adapter():
        without = Native(dtype="policy").build(policy).generate(PREFIXES, GREEDY)
    first = exact.rollout_logprobs_BT[:, 0]
    rounding = (short.rollout_logprobs_BT[:, 0] - first).abs().mean()
    assert 0 < rounding < 0.2 * (without.rollout_logprobs_BT[:, 0] - first).abs().mean()


@pytest.mark.parametrize(
    ("made", "reason"),
    [
        (gpt2_policy, "gpt2 is none of the families"),
        (lambda: tiny_policy(attention="eager"), "policy.attention=eager is not sdpa"),
        (lambda: family_policy("mistral", sliding_window=16), "attend to 16 tokens only"),
    ],
    ids=["architecture", "attention", "window"],
)
def test_other_policies_are_generated_by_transformers(made, reason):
    policy = made()
    engine = Native(max_prompt_tokens=8, max_response_tokens=40).build(policy)
    assert reason in engine.note
    assert_same(engine.generate(PREFIXES, Sampling()), Transformers().build(policy).generate(PREFIXES, Sampling()))


@pytest.mark.parametrize(
    ("dtype", "precision", "other"),
    [
        ("auto", "32-true", None),
        ("auto", "bf16-mixed", "bfloat16"),
        ("auto", "16-mixed", "float16"),
        ("auto", "bf16-true", None),
        ("bfloat16", "bf16-mixed", "bfloat16"),
        ("bfloat16", "bf16-true", None),
        ("bfloat16", "32-true", "bfloat16"),
        ("policy", "bf16-mixed", "the type that the policy is held in"),
        ("policy", "32-true", None),
    ],
)
def test_another_precision_than_the_updates(dtype, precision, other):
    assert Native(dtype=dtype).other_precision(precision) == other


def test_beside_the_trainer_the_weights_are_a_copy(rollout):
    """What is held at one moment generates, whatever training does to the policy meanwhile."""
    policy = tiny_policy()
    engine = Native(lag=1).build(policy)
    assert engine.beside_trainer
    assert engine.note is None
    engine.hold()
    with torch.no_grad():
        policy.model.lm_head.weight.mul_(-1)
    assert_same(engine.generate(PREFIXES, Sampling()), rollout)
    assert responses(engine.generate(PREFIXES, Sampling())) != responses(rollout)
    assert not Native().build(policy).beside_trainer


def test_a_window_that_nothing_reaches_is_none():
    policy = family_policy("mistral", sliding_window=64)
    engine = Native(max_prompt_tokens=8, max_response_tokens=40).build(policy)
    assert isinstance(engine, NativeEngine)
    assert engine.note is None


def test_the_cache_grows_with_what_is_decoded(policy):
    from tpg.rollouts.native.cache import BLOCK, Own

    own = Own(2, 1000)
    own.admit(2)
    for length in range(1, 200):
        own.feed(torch.device("cpu"))
        token = torch.full((2, 3, 1, 4), float(length))
        own.write(0, token, -token)
        width = own._keys[0].shape[2]
        assert length <= width <= max(BLOCK, 2 * length)
    assert own._keys[0][1, 2, :199, 0].tolist() == [float(length) for length in range(1, 200)]
    assert own._values[0][0, 0, :199, 3].tolist() == [-float(length) for length in range(1, 200)]
