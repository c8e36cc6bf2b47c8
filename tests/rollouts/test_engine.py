import pydantic
import pytest
import torch
from builders import tiny_policy
from engines import EOS, PAD, PREFIXES, assert_same, naive, responses
from transformers import GenerationConfig

from tpg.policies.base import Policy
from tpg.randomness import key
from tpg.rollouts.engine import Prefix
from tpg.rollouts.native.engine import Native
from tpg.rollouts.sampling import GREEDY, Sampling
from tpg.rollouts.transformers import Transformers
from tpg.trajectories import FinishReason, Trajectories

STOP, LENGTH = FinishReason.STOP, FinishReason.LENGTH


@pytest.fixture(scope="module", params=[Transformers, Native], ids=["transformers", "native"])
def options(request):
    return request.param


@pytest.fixture(scope="module")
def policy() -> Policy:
    return tiny_policy()


@pytest.fixture(scope="module")
def rollout(policy, options) -> Trajectories:
    return options().build(policy).generate(PREFIXES, Sampling(), version=7)


def test_tokens_are_those_of_one_forward_pass_at_a_time(policy, rollout):
    expected = [naive(policy, wanted, k, Sampling()) for wanted in PREFIXES for k in wanted.keys]
    assert responses(rollout) == expected


def test_the_rollout_is_worth_testing(rollout):
    assert len(set(rollout.lengths_B.tolist())) >= 4
    assert set(rollout.finish_reason_B.tolist()) == {STOP, LENGTH}
    assert len({tuple(ids) for ids in responses(rollout)}) == 11


def test_masks_and_finish_reasons(rollout):
    assert torch.equal(rollout.action_mask_BT, rollout.response_mask_BT)
    for i, ids in enumerate(responses(rollout)):
        assert rollout.response_mask_BT[i].tolist() == [t < len(ids) for t in range(rollout.response_ids_BT.shape[1])]
        assert not rollout.rollout_logprobs_BT[i, len(ids) :].any()
        assert (rollout.rollout_logprobs_BT[i, : len(ids)] < 0).all()
        assert EOS not in ids[:-1]
        if rollout.finish_reason_B[i] == STOP:
            assert ids[-1] == EOS
        else:
            assert ids[-1] != EOS
            assert len(ids) == 40


def test_where_trajectories_come_from(rollout):
    assert rollout.row_B.tolist() == [0] * 4 + [1] * 4 + [2] * 3
    assert rollout.response_index_B.tolist() == [0, 1, 2, 3, 0, 1, 2, 3, 0, 1, 2]
    assert rollout.draw_B.tolist() == [0] * 11
    assert rollout.parent_B.tolist() == [-1] * 11
    assert rollout.position_B.tolist() == [0] * 11
    assert rollout.version_B.tolist() == [7] * 11
    prompts = [
        ids_P[mask_P].tolist() for ids_P, mask_P in zip(rollout.prompt_ids_BP, rollout.prompt_mask_BP, strict=True)
    ]
    assert prompts == [[40, 41, 42, 43, 44]] * 4 + [[50]] * 4 + [[60, PAD, EOS, 61]] * 3
    assert rollout.prompt_mask_BP[4].tolist() == [False] * 4 + [True]


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(),
        Sampling(temperature=0.6),
        Sampling(top_p=0.8),
        Sampling(temperature=0.6, top_k=5, min_p=0.05),
        GREEDY,
    ],
    ids=str,
)
def test_log_probabilities_are_the_trainers(options, policy, sampling):
    trajectories = options().build(policy).generate(PREFIXES, sampling)
    with torch.no_grad():
        trained_BT = policy.statistics(trajectories, sampling.temperature or 1.0).logprobs
    torch.testing.assert_close(trajectories.rollout_logprobs_BT, trained_BT, rtol=0, atol=1e-4)
    stopped = (trajectories.finish_reason_B == STOP).nonzero()[:, 0]
    ends = trajectories.lengths_B[stopped] - 1
    assert sampling == GREEDY or len(stopped)
    assert trajectories.response_ids_BT[stopped, ends].tolist() == [EOS] * len(stopped)
    assert (trajectories.rollout_logprobs_BT[stopped, ends] < 0).all()


def test_greedy_takes_the_likeliest_token_whatever_the_key(options, policy):
    trajectories = options().build(policy).generate(PREFIXES[:1], GREEDY)
    assert responses(trajectories) == [naive(policy, PREFIXES[0], 0, GREEDY)] * 4


@pytest.mark.parametrize("batch_responses", [1, 3, 4, 11])
def test_how_many_are_decoded_at_once_does_not_matter(options, policy, rollout, batch_responses):
    assert_same(options(batch_responses=batch_responses).build(policy).generate(PREFIXES, Sampling()), rollout)


def test_the_company_does_not_matter(options, policy, rollout):
    for wanted, rows in zip(PREFIXES, [range(4), range(4, 8), range(8, 11)], strict=True):
        alone = options().build(policy).generate([wanted], Sampling())
        assert responses(alone) == [responses(rollout)[i] for i in rows]
    reversed_order = options().build(policy).generate(PREFIXES[::-1], Sampling())
    order = [8, 9, 10, 4, 5, 6, 7, 0, 1, 2, 3]
    assert responses(reversed_order) == [responses(rollout)[i] for i in order]


def test_tokens_are_a_function_of_the_keys(options, policy, rollout):
    again = options().build(policy).generate(PREFIXES, Sampling())
    assert_same(again, rollout)
    torch.manual_seed(99)
    other_keys = [Prefix(p.prompt_ids, p.max_tokens, tuple(k + 1 for k in p.keys), p.row) for p in PREFIXES]
    others = options().build(policy).generate(other_keys, Sampling())
    assert all(a != b for a, b in zip(responses(others), responses(rollout), strict=True))
    same_key = Prefix((40, 41), 20, (key(1), key(2), key(1)), row=0)
    first, second, third = responses(options().build(policy).generate([same_key], Sampling()))
    assert first == third != second


def test_the_models_own_generation_config_changes_nothing(options, rollout):
    policy = tiny_policy()
    own = GenerationConfig(
        repetition_penalty=5.0,
        no_repeat_ngram_size=2,
        suppress_tokens=list(range(30, 90)),
        do_sample=True,
        temperature=0.1,
        top_k=1,
        max_length=3,
        eos_token_id=EOS,
        pad_token_id=PAD,
    )
    policy.model.generation_config = own
    assert_same(options().build(policy).generate(PREFIXES, Sampling()), rollout)
    assert policy.model.generation_config is own
    assert own.repetition_penalty == 5.0


def test_any_end_token_ends_a_response(options, rollout):
    policy = tiny_policy()
    seen = responses(rollout)[0][2]
    policy.model.generation_config.eos_token_id = [EOS, seen]
    cut = options().build(policy).generate(PREFIXES, Sampling())
    for ids, finish, whole in zip(responses(cut), cut.finish_reason_B.tolist(), responses(rollout), strict=True):
        ends = [t for t, token in enumerate(whole) if token in (EOS, seen)]
        assert ids == (whole[: ends[0] + 1] if ends else whole)
        assert finish == (STOP if ends else LENGTH)
    assert cut.lengths_B[0] <= 3


def test_continuations(options, policy, rollout):
    whole = responses(rollout)
    long = [i for i, ids in enumerate(whole) if len(ids) > 8]
    positions = {long[0]: 5, long[1]: 1, long[-1]: 8}
    prompts = [list(wanted.prompt_ids) for wanted in PREFIXES for _ in wanted.keys]
    prefixes = [
        Prefix(
            tuple(prompts[i]),
            12,
            (key(i, 0), key(i, 1)),
            row=100 + i,
            draw=3,
            response_ids=tuple(whole[i][:n]),
            parent=i,
        )
        for i, n in positions.items()
    ]
    continued = options().build(policy).generate(prefixes, Sampling(), version=2)
    parents = [i for i in positions for _ in range(2)]
    assert continued.parent_B.tolist() == parents
    assert continued.position_B.tolist() == [positions[i] for i in parents]
    assert continued.row_B.tolist() == [100 + i for i in parents]
    assert continued.draw_B.tolist() == [3] * 6
    assert continued.response_index_B.tolist() == [0, 1] * 3
    assert continued.version_B.tolist() == [2] * 6
    for k, (i, ids) in enumerate(zip(parents, responses(continued), strict=True)):
        n = positions[i]
        assert ids[:n] == whole[i][:n]
        assert ids[n:] == naive(policy, prefixes[k // 2], key(i, k % 2), Sampling())
        assert continued.action_mask_BT[k].nonzero()[:, 0].tolist() == list(range(n, len(ids)))
        assert not continued.rollout_logprobs_BT[k, :n].any()
        assert continued.finish_reason_B[k] == (STOP if ids[-1] == EOS else LENGTH)
        assert ids[-1] == EOS or len(ids) == n + 12
        own = continued.prompt_ids_BP[k][continued.prompt_mask_BP[k]].tolist()
        assert own == prompts[i]
    with torch.no_grad():
        trained_BT = policy.statistics(continued, 1.0).logprobs
    mask_BT = continued.action_mask_BT
    torch.testing.assert_close(continued.rollout_logprobs_BT[mask_BT], trained_BT[mask_BT], rtol=0, atol=1e-4)


def test_each_prefix_has_its_own_limit(options, policy, rollout):
    limits = [3, 40, 12]
    prefixes = [Prefix(p.prompt_ids, n, p.keys, p.row) for p, n in zip(PREFIXES, limits, strict=True)]
    limited = options().build(policy).generate(prefixes, Sampling())
    for i, (ids, whole) in enumerate(zip(responses(limited), responses(rollout), strict=True)):
        assert ids == whole[: ([3] * 4 + [40] * 4 + [12] * 3)[i]]
        assert limited.finish_reason_B[i] == (STOP if ids[-1] == EOS else LENGTH)
    assert max(limited.lengths_B[:4]) == 3
    assert max(limited.lengths_B[8:]) == 12


def test_one_token(options, policy, rollout):
    prefixes = [Prefix(p.prompt_ids, 1, p.keys, p.row) for p in PREFIXES]
    single = options().build(policy).generate(prefixes, Sampling())
    assert responses(single) == [ids[:1] for ids in responses(rollout)]
    assert single.response_mask_BT.tolist() == [[True]] * 11
    torch.testing.assert_close(single.rollout_logprobs_BT, rollout.rollout_logprobs_BT[:, :1], rtol=0, atol=1e-4)


def test_the_rollout_needs_no_gradient(rollout):
    assert not rollout.rollout_logprobs_BT.requires_grad
    assert rollout.rollout_logprobs_BT.dtype == torch.float32


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_other_attention_implementations_draw_the_same(options, rollout, attention):
    assert_same(options().build(tiny_policy(attention=attention)).generate(PREFIXES, Sampling()), rollout)


def test_sampling_options(options):
    engine = options(temperature=0.6, top_k=5, top_p=0.9, min_p=0.1)
    assert engine.sampling == Sampling(0.6, 5, 0.9, 0.1)
    assert options().sampling == Sampling()


@pytest.mark.parametrize(
    "fields",
    [
        {"temperature": 0.0},
        {"top_k": 0},
        {"top_p": 0.0},
        {"top_p": 1.1},
        {"min_p": 1.0},
        {"batch_responses": 0},
        {"max_response_tokens": 0},
        {"responses_per_prompt": 0},
        {"max_tokens": 8},
    ],
    ids=str,
)
def test_options_are_checked(options, fields):
    with pytest.raises(pydantic.ValidationError, match=next(iter(fields))):
        options(**fields)
