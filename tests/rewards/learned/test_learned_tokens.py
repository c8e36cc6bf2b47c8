"""Rewards of a response's tokens, summed: of a token classifier, and of a preference-trained model."""

import pytest
import torch
from builders import record
from small_models import CHAT, saved, small_model, tokenizer

from tpg.errors import UserError
from tpg.policies.base import Policy
from tpg.rewards.base import Sample
from tpg.rewards.learned.options import Implicit, TokenSum
from tpg.rewards.model import RewardModel, check_terms

RESPONSES = ["4", "it is four", "", "a much longer answer that says nothing at all", "4!"]
SAMPLES = [Sample(prompt=f"{i} + 2 =", response=response) for i, response in enumerate(RESPONSES)]
CUT = [Sample(prompt=sample.prompt, response=sample.response, truncated=True) for sample in SAMPLES]


def score(term, samples=SAMPLES):
    with RewardModel({"rm": term}, workers=1) as model:
        return model.score(samples)


def logits_of(model, tokens, text):
    with torch.no_grad():
        return model(input_ids=torch.tensor([tokens(text)["input_ids"]])).logits[0]


@pytest.mark.parametrize("tokens_per_batch", [1, 60, 10_000])
def test_the_sum_over_the_response_s_own_tokens(tokens_per_batch, tmp_path):
    model, tokens = small_model("token"), tokenizer()
    expected = []
    for sample in SAMPLES:
        values = logits_of(model, tokens, f"{sample.prompt}\n\n{sample.response}")[:, 0]
        expected.append(float(values[len(sample.prompt) + 2 :].double().sum()))
    assert max(expected) - min(expected) > 1
    assert expected[2] == 0
    found = score(TokenSum(path=saved(tmp_path, model, tokens), tokens_per_batch=tokens_per_batch))
    assert found.total == pytest.approx(expected, abs=1e-5)


def test_what_ends_a_turn_counts_where_the_response_has_ended(tmp_path):
    model, tokens = small_model("token"), tokenizer(CHAT)
    path = saved(tmp_path, model, tokens)
    values = logits_of(model, tokens, "<user>0 + 2 =|<assistant>4|")[:, 0].tolist()
    assert score(TokenSum(path=path), SAMPLES[:1]).total == pytest.approx([sum(values[-2:])], abs=1e-5)
    assert score(TokenSum(path=path), CUT[:1]).total == pytest.approx([values[-2]], abs=1e-5)


def folders(tmp_path, tokens, **options):
    models = [small_model("causal", seed=seed) for seed in (0, 1)]
    names = [saved(tmp_path / str(number), model, tokens) for number, model in enumerate(models)]
    return models, Implicit(path=names[0], reference_path=names[1], **options)


def log_ratios(models, tokens, pairs):
    """log pi - log pi_ref of each response, by the log-probabilities that policies are trained with."""
    ids = [[tokens.encode(text, add_special_tokens=False) for text in pair] for pair in pairs]
    one, other = (
        Policy(model, tokens).statistics(record(*map(list, zip(*ids, strict=True))), 1.0).logprobs for model in models
    )
    mask_BT = record(*map(list, zip(*ids, strict=True))).response_mask_BT
    return torch.where(mask_BT, one - other, 0.0).sum(-1).tolist()


@pytest.mark.parametrize("tokens_per_batch", [1, 60, 10_000])
def test_the_implicit_reward_is_the_log_ratio_of_the_policies(tokens_per_batch, tmp_path):
    tokens = tokenizer()
    models, term = folders(tmp_path, tokens, beta=0.25, tokens_per_batch=tokens_per_batch)
    with torch.no_grad():
        ended = log_ratios(models, tokens, [(s.prompt, s.response + "<eos>") for s in SAMPLES])
    assert score(term).total == pytest.approx([0.25 * value for value in ended], abs=1e-5)
    assert len({round(value, 3) for value in ended}) == 5
    going = [s for s in CUT if s.response]
    with torch.no_grad():
        cut = log_ratios(models, tokens, [(s.prompt, s.response) for s in going])
    assert score(term, going).total == pytest.approx([0.25 * value for value in cut], abs=1e-5)
    assert score(term, CUT[2:3]).total == [0.0]
    with torch.no_grad():
        (after_its_first,) = log_ratios(models, tokens, [("4", "!<eos>")])  # which nothing foretells
    assert score(term, [Sample(prompt="", response="4!")]).total == pytest.approx([0.25 * after_its_first], abs=1e-5)


def test_the_implicit_reward_of_a_chat(tmp_path):
    tokens = tokenizer(CHAT)
    models, term = folders(tmp_path, tokens, beta=1.0)
    with torch.no_grad():
        expected = log_ratios(models, tokens, [(f"<user>{s.prompt}|<assistant>", f"{s.response}|") for s in SAMPLES])
    assert score(term).total == pytest.approx(expected, abs=1e-5)


def test_the_reference_s_context_counts_too(tmp_path):
    tokens = tokenizer()
    saved(tmp_path / "0", small_model("causal"), tokens)
    saved(tmp_path / "1", small_model("causal", max_position_embeddings=20), tokens)
    term = Implicit(path=str(tmp_path / "0"), reference_path=str(tmp_path / "1"))
    assert score(term).scored == [True, True, True, False, True]


def test_mistakes_are_told_before_anything_is_loaded(tmp_path):
    several = saved(tmp_path / "several", small_model("token", num_labels=3))
    one = saved(tmp_path / "one", small_model("causal"))
    for term, message in [
        (TokenSum(path=several), f"path={several}: the model gives each token 3 labels; a token-level reward is one"),
        (Implicit(path=one, reference_path=one), f"reference_path={one}: is the model itself; every reward would be 0"),
        (Implicit(path=one, reference_path="./none"), "reference_path=./none: no such folder"),
    ]:
        with pytest.raises(UserError) as caught:
            check_terms({"rm": term}, ())
        assert str(caught.value).startswith(f"reward_model.rm.{message}")


def test_other_models_are_refused(tmp_path):
    several = saved(tmp_path / "several", small_model("token", num_labels=3))
    classifier, causal = (saved(tmp_path / kind, small_model(kind)) for kind in ("llama", "causal"))
    larger = saved(tmp_path / "larger", small_model("causal", vocab_size=90))
    for term, message in [
        (TokenSum(path=several), f"path={several}: the model gives each token 3 labels"),
        (TokenSum(path=causal), f"path={causal}: the weights lack score.bias, score.weight, so this is no trained"),
        (Implicit(path=classifier, reference_path=causal), f"path={classifier}: the weights lack lm_head.weight"),
        (Implicit(path=causal, reference_path=larger), f"reference_path={larger}: the tokenizer has 99 tokens and the"),
    ]:
        with pytest.raises(UserError) as caught:
            term.load("reward_model.rm")
        assert str(caught.value).startswith(f"reward_model.rm.{message}")


def test_a_tokenizer_that_cannot_tell_places_is_refused(tmp_path):
    from transformers import ByT5Tokenizer

    path = saved(tmp_path, small_model("token", vocab_size=400), ByT5Tokenizer())
    with pytest.raises(UserError, match=r"path=.*: its tokenizer cannot tell which tokens are the response's"):
        TokenSum(path=path).load("reward_model.rm")
