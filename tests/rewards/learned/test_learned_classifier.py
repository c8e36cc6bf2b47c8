"""Sequence classifiers as rewards: their values, whatever batch they come in; and what is refused."""

import json
import math

import pytest
import torch
from pydantic import ValidationError
from small_models import CHAT, saved, small_model, tokenizer

from tpg.errors import UserError
from tpg.rewards.base import Sample
from tpg.rewards.learned.options import Classifier
from tpg.rewards.learned.scorers import batches
from tpg.rewards.model import RewardModel, check_terms

KINDS = ["llama", "llama, padded with its end", "llama without padding", "gpt2", "bert", "roberta"]
RESPONSES = ["4", "it is four", "", "a much longer answer that says nothing at all", "4!", "no"]
SAMPLES = [Sample(prompt=f"{i} + 2 =", response=response) for i, response in enumerate(RESPONSES)]


def scores(path, samples=SAMPLES, **options):
    """The values that a reward of this one term gives, and all else that it says."""
    with RewardModel({"classifier": Classifier(path=path, **options)}, workers=1) as model:
        return model.score(samples)


def alone(model, tokens, samples=SAMPLES):
    """What transformers gives each conversation in a pass of its own."""
    with torch.no_grad():
        return [
            float(model(input_ids=torch.tensor([tokens(f"{s.prompt}\n\n{s.response}")["input_ids"]])).logits[0, 0])
            for s in samples
        ]


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("kind", KINDS)
def test_values_are_the_model_s_own_in_any_batch(kind, side, tmp_path):
    model, tokens = small_model(kind), tokenizer(padding_side=side)
    path, expected = saved(tmp_path, model, tokens), alone(model, tokens)
    assert max(expected) - min(expected) > 0.01
    for tokens_per_batch in (1, 60, 10_000):
        assert scores(path, tokens_per_batch=tokens_per_batch).total == pytest.approx(expected, abs=1e-5)


def test_a_model_without_padding_that_sees_every_token_there_is(tmp_path):
    model = small_model("llama without padding", vocab_size=99)
    everything = [Sample(prompt="", response="".join(map(chr, range(32 + k, 80 + k)))) for k in (0, 20, 47)]
    everything += [Sample(prompt="", response="<eos><unk><pad>")]
    tokens = tokenizer()
    covered = set().union(*(tokens(f"\n\n{s.response}")["input_ids"] for s in everything))
    assert covered == set(range(99))
    path, expected = saved(tmp_path, model), alone(model, tokens, everything)
    assert scores(path, everything).total == pytest.approx(expected, abs=1e-5)
    assert scores(path, everything[-2:]).total == pytest.approx(expected[-2:], abs=1e-5)
    assert scores(path, everything[-1:]).total == pytest.approx(expected[-1:], abs=1e-5)


def test_the_order_of_batches():
    assert list(batches([3, 9, 4, 2, 10], 20)) == [[4, 1], [2, 0, 3]]
    assert list(batches([3, 9, 4], 5)) == [[1], [2], [0]]
    assert list(batches([], 5)) == []


def test_the_chat_template_is_applied(tmp_path):
    model, tokens = small_model(), tokenizer(CHAT)
    ids = tokens("<user>2+2=|<assistant>4|")["input_ids"]
    expected = float(model(input_ids=torch.tensor([ids])).logits.detach()[0, 0])
    found = scores(saved(tmp_path, model, tokens), [Sample(prompt="2+2=", response="4 ")]).total
    assert found == pytest.approx([expected], abs=1e-5)


@pytest.mark.parametrize(("label", "value"), [("good", math.log(0.75)), ("bad", math.log(0.25)), (0, math.log(0.75))])
def test_a_label_s_log_probability(label, value, tmp_path):
    model = small_model("bert", num_labels=2, id2label={0: "good", 1: "bad"}, label2id={"good": 0, "bad": 1})
    torch.nn.init.zeros_(model.classifier.weight)
    model.classifier.bias.data = torch.tensor([math.log(3), 0.0])  # 3 to 1
    assert scores(saved(tmp_path, model), label=label).total == pytest.approx([value] * 6)


def test_labels_that_do_not_exclude_each_other(tmp_path):
    model = small_model("bert", num_labels=3, problem_type="multi_label_classification")
    torch.nn.init.zeros_(model.classifier.weight)
    model.classifier.bias.data = torch.tensor([5.0, math.log(3), 0.0])
    assert scores(saved(tmp_path, model), label="LABEL_1").total == pytest.approx([math.log(0.75)] * 6)


def test_what_is_too_long_is_unscored_and_nothing_is_cut(tmp_path):
    model = small_model(max_position_embeddings=30)
    path = saved(tmp_path, model)
    found = scores(path)
    assert found.scored == [True, True, True, False, True, True]
    assert found.failures == {"classifier": {"too long": 1}}
    told = "prompt and response are 54 tokens, and the reward model reads 30"
    assert found.first_failure == {"classifier": told}
    assert scores(path, max_tokens=10).scored == [True, False, True, False, False, False]
    tokens = tokenizer(model_max_length=9)
    assert sum(scores(saved(tmp_path, model, tokens)).scored) == 1


def test_positions_that_begin_behind_the_padding_s_are_fewer(tmp_path):
    model = small_model("roberta", max_position_embeddings=20, pad_token_id=1)
    samples = [Sample(prompt="p" * 10, response="r" * length) for length in (6, 7)]
    assert scores(saved(tmp_path, model), samples).scored == [True, False]


def test_the_precision_of_what_trains_does_not_reach_it(tmp_path):
    path = saved(tmp_path, small_model())
    expected = scores(path).total
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert scores(path).total == pytest.approx(expected, abs=1e-5)
    halved = scores(path, dtype="bfloat16").total
    assert halved != pytest.approx(expected, abs=1e-4)
    assert halved == pytest.approx(expected, rel=0.3, abs=0.3)


def test_it_is_frozen_and_goes_where_the_policy_is_unless_told(tmp_path):
    path = saved(tmp_path, small_model())
    free, held = (Classifier(path=path, device=device).load("reward_model.rm") for device in ("auto", "cpu"))
    for scorer in (free, held):
        assert not any(parameter.requires_grad for parameter in scorer.models[0].parameters())
        assert not scorer.models[0].training
        scorer.to("meta")
    assert (free.device.type, held.device.type) == ("meta", "cpu")


def test_a_template_that_refuses_a_prompt_costs_that_prompt_alone(tmp_path):
    tokens = tokenizer("{% if 'x' in messages[0]['content'] %}{{ raise_exception('no x') }}{% endif %}" + CHAT)
    path = saved(tmp_path, small_model(), tokens)
    found = scores(path, [Sample(prompt="x", response=""), Sample(prompt="y", response="")])
    assert found.scored == [False, True]
    assert found.first_failure == {"classifier": "TemplateError: no x"}


TWO = {"num_labels": 2, "id2label": {0: "good", 1: "bad"}, "label2id": {"good": 0, "bad": 1}}


@pytest.mark.parametrize(
    ("options", "given", "message"),
    [
        (TWO, {}, "rm.label: the model has 2 labels; name one of 'good' (0), 'bad' (1)"),
        (TWO, {"label": "god"}, "rm.label=god: the model's labels are 'good' (0), 'bad' (1); did you mean good?"),
        (TWO, {"label": 2}, "rm.label=2: the model's labels are 'good' (0), 'bad' (1)"),
        ({}, {"label": "good"}, "rm.label=good: the model has one logit, which is the reward; leave label out"),
    ],
)
def test_a_label_that_is_not_there_is_told_before_anything_is_loaded(options, given, message, tmp_path):
    term = Classifier(path=saved(tmp_path, small_model(**options)), **given)
    for told in (lambda: check_terms({"rm": term}, ()), lambda: term.load("reward_model.rm")):
        with pytest.raises(UserError) as caught:
            told()
        assert str(caught.value) == f"reward_model.{message}"


def without(name):
    return lambda folder: (folder / name).unlink()


def pickled(folder):
    torch.save({}, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def no_tokenizer(folder):
    for file in folder.glob("tokenizer*"):
        file.unlink()


def broken_config(folder):
    (folder / "config.json").write_text("{")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (without("config.json"), "the folder holds no config.json, so it is no Hugging Face model"),
        (pickled, "the folder holds no *.safetensors; pickled weights (*.bin, *.pt) can run code and are not loaded"),
        (no_tokenizer, "the folder holds no tokenizer; put it beside the weights with tokenizer.save_pretrained("),
    ],
)
def test_a_folder_that_lacks_something_is_told_before_anything_is_loaded(damage, message, tmp_path):
    term = Classifier(path=saved(tmp_path, small_model()))
    check_terms({"rm": term}, ())
    damage(tmp_path)
    with pytest.raises(UserError) as caught:
        check_terms({"rm": term}, ())
    assert str(caught.value).startswith(f"reward_model.rm.path={tmp_path}: {message}")
    assert "\n" not in str(caught.value)


def test_a_folder_that_is_not_there():
    with pytest.raises(UserError, match=r"^reward_model.rm.path=./nowhere: no such folder; give a local folder or"):
        check_terms({"rm": Classifier(path="./nowhere")}, ())
    check_terms({"rm": Classifier(path="org/name")}, ())


def other_tokenizer(folder):
    tokens = tokenizer()
    tokens.add_tokens(["<more>"])
    tokens.save_pretrained(folder)


def truncated_weights(folder):
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])


def stale_template(folder):
    tokenizer("{{ nothing.there }}").save_pretrained(folder)


def unknown_kind(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "nobody_knows"}))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (other_tokenizer, "the tokenizer has 100 tokens and the model 99; they do not belong together"),
        (truncated_weights, ""),
        (
            stale_template,
            "its tokenizer does not render a prompt and a response: UndefinedError: 'nothing'",
        ),
        (unknown_kind, ""),
        (broken_config, ""),
        (lambda folder: saved(folder, small_model("causal")), "the weights lack score.weight, so this is no trained"),
    ],
)
def test_what_cannot_be_loaded_is_told_in_one_line(damage, message, tmp_path):
    term = Classifier(path=saved(tmp_path, small_model()))
    damage(tmp_path)
    with pytest.raises(UserError) as caught:
        term.load("reward_model.rm")
    assert str(caught.value).startswith(f"reward_model.rm.path={tmp_path}: {message}")
    assert "\n" not in str(caught.value)


def test_a_device_that_is_not_there(tmp_path):
    with pytest.raises(ValidationError, match="'gpu' is none of auto, cpu, mps, cuda, cuda:0"):
        Classifier(path="org/name", device="gpu")
    with pytest.raises(UserError, match=r"^reward_model.rm.device=cuda:7: "):
        Classifier(path=saved(tmp_path, small_model()), device="cuda:7").load("reward_model.rm")
