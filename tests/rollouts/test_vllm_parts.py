"""What of `rollout=vllm` needs no vLLM: its options, the weights as they are handed over, the check of a server."""

import importlib.util
import json

import pydantic
import pytest
import torch
from builders import gpt2_policy, prefix, tiny_policy

import tpg.rollouts.vllm.engine as engine_module
from tpg.errors import UserError
from tpg.policies.base import LoRA
from tpg.rollouts.sampling import GREEDY, Sampling
from tpg.rollouts.vllm import VLLM
from tpg.rollouts.vllm.backend import Answer, Backend, Request, reason_of
from tpg.rollouts.vllm.weights import merged_weights, save_config, signature
from tpg.trajectories import FinishReason


def test_a_missing_package_is_told_with_its_remedy(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r'rollout=vllm: needs vllm.*pip install "tpg\[vllm\]"') as told:
        VLLM().check()
    assert "\n" not in str(told.value)
    VLLM(server="http://localhost:1").check()


@pytest.mark.parametrize(
    "fields",
    [
        {"server": "localhost:8000"},
        {"gpu_memory_share": 0.0},
        {"gpu_memory_share": 1.1},
        {"kv_cache_gib": 0.0},
        {"dtype": "float8"},
        {"batch_responses": 0},
        {"max_model_len": 1},
    ],
    ids=str,
)
def test_options_are_checked(fields):
    with pytest.raises(pydantic.ValidationError, match=next(iter(fields))):
        VLLM(**fields)


@pytest.mark.parametrize(
    ("dtype", "precision", "other"),
    [
        ("auto", "bf16-mixed", None),
        ("policy", "32-true", None),
        ("policy", "bf16-mixed", "the policy's own dtype"),
        ("bfloat16", "bf16-mixed", None),
        ("bfloat16", "32-true", "bfloat16"),
        ("float16", "16-mixed", None),
        ("float32", "bf16-true", "float32"),
    ],
)
def test_another_precision_than_the_updates(dtype, precision, other):
    assert VLLM(dtype=dtype).other_precision(precision) == other


def test_nobody_at_the_address():
    with pytest.raises(UserError, match=r"rollout\.server=http://127\.0\.0\.1:9/version: no answer .*serve"):
        VLLM(server="http://127.0.0.1:9/").build(tiny_policy())


@pytest.mark.parametrize("made", [tiny_policy, gpt2_policy])
def test_weights_are_those_of_a_checkpoint(made):
    policy = made()
    weights = dict(merged_weights(policy))
    assert set(weights) == set(policy.model.state_dict())
    assert weights["lm_head.weight"].shape[0] == 99  # shared with the embedding, and handed over all the same
    assert all(torch.equal(weights[name], value) for name, value in policy.model.state_dict().items())


def test_adapters_are_merged_as_peft_merges_them():
    policy = tiny_policy(lora=LoRA(rank=4, alpha=3))
    with torch.no_grad():
        for name, parameter in policy.named_parameters():
            if "lora_B" in name:
                parameter.normal_(generator=torch.Generator().manual_seed(0))
    weights = {name: value.clone() for name, value in merged_weights(policy)}
    assert set(weights) == set(tiny_policy().model.state_dict())
    plain = tiny_policy().model.state_dict()
    changed = {name for name in weights if not torch.equal(weights[name], plain[name])}
    assert len(changed) == 4 * 7  # layers, each with four linear layers of attention and three of its network
    merged = policy.model.merge_and_unload().state_dict()
    for name, value in weights.items():
        torch.testing.assert_close(value, merged[name], rtol=0, atol=1e-6)


def test_the_config_has_an_output_layer_of_its_own(tmp_path):
    policy = tiny_policy(lora=LoRA(rank=2))
    save_config(policy, tmp_path)
    written = json.loads((tmp_path / "config.json").read_text())
    assert written["architectures"] == ["LlamaForCausalLM"]
    assert written["tie_word_embeddings"] is False
    assert policy.model.get_base_model().config.tie_word_embeddings is True


def test_every_change_of_a_weight_is_seen():
    policy = tiny_policy()
    seen = [signature(policy), signature(policy)]
    assert seen[0] == seen[1]
    weight = policy.model.model.layers[1].mlp.up_proj.weight
    with torch.no_grad():
        weight[0, 0] += 0  # written, though not changed
        seen.append(signature(policy))
        weight.data[0, 0] += 0.5  # past the count of writes
        seen.append(signature(policy))
        weight.data = weight.data.clone()
        seen.append(signature(policy))
    assert len(set(seen)) == 4


def test_a_request_says_how_it_is_drawn():
    parameters = Request((5, 6), 9, key=2**100 + 1).parameters(Sampling(0.7, top_k=3), frozenset({4, 1}))
    assert parameters["temperature"] == 0.0
    assert parameters["max_tokens"] == 9
    assert parameters["stop_token_ids"] == [1, 4]
    drawing = json.loads(parameters["extra_args"]["tpg"])
    wanted = {"key": "10000000000000000000000001", "tokens": 9, "temperature": 0.7, "top_k": 3}
    assert drawing == {**wanted, "top_p": None, "min_p": None}


def test_reasons():
    assert reason_of("stop") == FinishReason.STOP
    assert reason_of("length") == FinishReason.LENGTH
    with pytest.raises(RuntimeError, match="abort"):
        reason_of("abort")


class Wrong(Backend):
    """Answers with token 7 and log-probabilities that are off by `gap`."""

    def __init__(self, policy, gap):
        self.policy, self.gap, self.log = policy, gap, []

    def load(self, weights):
        self.log.append("load")

    def answer(self, requests, sampling, end_ids, on_step=None, on_answers=None):
        self.log.append(f"answer {len(requests)}")
        answers = []
        for request in requests:
            ids = [*request.token_ids, *[7] * request.max_tokens]
            logprobs_SV = self.policy.model(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
            logprobs = logprobs_SV[len(request.token_ids) - 1 : -1, 7] + self.gap
            answers.append(Answer([7] * request.max_tokens, logprobs.tolist(), FinishReason.LENGTH))
        return answers

    def sleep(self):
        self.log.append("sleep")

    def wake(self):
        self.log.append("wake")

    def close(self):
        self.log.append("close")


@pytest.fixture
def running(monkeypatch):
    """An engine on a backend that is off by a gap, and the backend's log."""

    def made(gap, **options):
        policy = tiny_policy()
        backend = Wrong(policy, gap)
        monkeypatch.setattr(engine_module, "LocalBackend", lambda *arguments: backend)
        return VLLM(max_prompt_tokens=20, max_response_tokens=20, **options).build(policy), backend.log

    return made


def test_log_probabilities_that_are_off_are_told(running):
    engine, _ = running(0.02)
    with pytest.raises(UserError, match=r"0\.02 nats a token from the policy's, and 0\.01 is allowed"):
        engine.generate([prefix([5], 2, max_tokens=3)], GREEDY)
    engine, _ = running(float("nan"))
    with pytest.raises(UserError, match="nan nats"):
        engine.generate([prefix([5], 2, max_tokens=3)], GREEDY)
    engine, _ = running(0.02, dtype="bfloat16")
    assert engine.generate([prefix([5], 2, max_tokens=3)], GREEDY).response_ids_BT.tolist() == [[7] * 3] * 2


def test_weights_are_handed_over_once_and_after_each_sleep(running):
    wanted = [prefix([5], 2, max_tokens=3)]
    engine, log = running(0.0)
    engine.generate(wanted, GREEDY)
    engine.generate(wanted, GREEDY)
    engine.close()
    assert log == ["wake", "load", "answer 2", "answer 2", "wake", "answer 2", "close"]
    engine, log = running(0.0, sleep=True)
    engine.generate(wanted, GREEDY)
    engine.generate(wanted, GREEDY)
    assert log == ["wake", "load", "answer 2", "answer 2", "sleep"] * 2


def test_a_longer_sequence_than_fits_is_told(running):
    engine, log = running(0.0)
    with pytest.raises(UserError, match=r"rollout\.max_model_len: 30 tokens and 11 new ones do not fit into 40"):
        engine.generate([prefix([5] * 30, 1, max_tokens=11)], GREEDY)
    assert log == []
