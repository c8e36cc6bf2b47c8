import json

import pytest
import torch
from builders import record, tiny_policy
from transformers import AutoModelForCausalLM, AutoTokenizer

from tpg.errors import UserError
from tpg.policies.huggingface import HuggingFace

TRAJECTORIES = record([[40], [12, 13, 14]], [[30, 31, 32, 1], [60, 61]])


@pytest.fixture
def saved(tmp_path):
    folder = tmp_path / "policy"
    tiny_policy().save(folder)
    return folder


def logits(model) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=torch.tensor([[12, 13, 14, 0, 1, 60]])).logits


def one_line(error: pytest.ExceptionInfo, path) -> str:
    message = str(error.value)
    assert message.startswith(f"policy.path={path}: ")
    assert "\n" not in message
    return message


def test_transformers_opens_what_was_saved(saved):
    assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(saved)), logits(tiny_policy().model))
    tokenizer = AutoTokenizer.from_pretrained(saved)
    assert tokenizer("a b", add_special_tokens=False)["input_ids"] == [69, 4, 70]
    assert (tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id) == (0, 1, 2)


def test_a_saved_folder_is_a_policy(saved):
    option = HuggingFace(path=str(saved))
    option.check()
    policy = option.load(0)
    assert policy.model.config._attn_implementation == "sdpa"
    with torch.no_grad():
        logprobs_BT = policy.statistics(TRAJECTORIES, 0.7).logprobs
        expected_BT = tiny_policy().statistics(TRAJECTORIES, 0.7).logprobs
    assert torch.equal(logprobs_BT, expected_BT)
    assert (policy.end_ids, policy.pad_id) == ({1}, 0)
    assert policy.model.dtype == torch.float32


def test_how_weights_are_held(saved):
    policy = HuggingFace(path=str(saved), dtype="bfloat16", attention="eager").load(0)
    assert policy.model.dtype == torch.bfloat16
    assert policy.model.config._attn_implementation == "eager"


@pytest.mark.parametrize("path", ["./nowhere", "/no/such/folder", "~/no/such/folder", "some/relative/folder"])
def test_missing_folder(path):
    with pytest.raises(UserError) as error:
        HuggingFace(path=path).check()
    assert "no such folder" in one_line(error, path)


def test_hub_ids_are_not_looked_up(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    HuggingFace(path="nobody/no-such-model").check()
    HuggingFace(path="gpt2").check()


def test_folder_without_config(saved):
    (saved / "config.json").unlink()
    with pytest.raises(UserError) as error:
        HuggingFace(path=str(saved)).check()
    assert "config.json" in one_line(error, saved)


def test_folder_without_safetensors(saved):
    (saved / "model.safetensors").rename(saved / "pytorch_model.bin")
    with pytest.raises(UserError) as error:
        HuggingFace(path=str(saved)).check()
    assert "safetensors" in one_line(error, saved)


def unknown_architecture(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "no_such_type"}))


@pytest.mark.parametrize(
    "spoil",
    [
        unknown_architecture,
        lambda folder: (folder / "config.json").write_text("{"),
        lambda folder: (folder / "tokenizer.json").unlink(),
        lambda folder: (folder / "model.safetensors").write_bytes(b"cut short"),
    ],
    ids=["architecture", "config", "tokenizer", "weights"],
)
def test_loading_what_is_spoilt_is_told_in_one_line(saved, spoil):
    spoil(saved)
    with pytest.raises(UserError) as error:
        HuggingFace(path=str(saved)).load(0)
    one_line(error, saved)
