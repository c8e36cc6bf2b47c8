"""Prompt and response as a reward model's tokens, and which of them are the response's own."""

import pytest
from small_models import CHAT, tokenizer
from tokenizers import processors

from tpg.rewards.learned.rendering import TooLongError, conversation, conversation_ids

PLAIN, TALKS = tokenizer(), tokenizer(CHAT)
EOS = 1


def beginning(template=None):
    """A tokenizer that begins a text with a token of its own, as Llama's does."""
    found = tokenizer(template)
    found.add_special_tokens({"bos_token": "<bos>"})
    bos = found.bos_token_id
    found.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A <eos>", special_tokens=[("<bos>", bos), ("<eos>", EOS)]
    )
    return found, bos


def text(tokens, ids):
    return tokens.decode(ids)


@pytest.mark.parametrize(
    ("tokens", "prompt", "response", "expected"),
    [
        (PLAIN, "2+2=", "4", "2+2=\n\n4"),
        (PLAIN, [{"role": "system", "content": "Add."}, {"role": "user", "content": "2+2="}], "4", "Add.\n2+2=\n\n4"),
        (TALKS, "2+2=", " 4 ", "<user>2+2=|<assistant>4|"),
        (TALKS, ({"role": "system", "content": "Add."},), "4", "<system>Add.|<assistant>4|"),
        (TALKS, "", "", "<user>|<assistant>|"),
    ],
)
def test_what_is_read(tokens, prompt, response, expected):
    assert text(tokens, conversation_ids(tokens, prompt, response)) == expected
    assert conversation(tokens, prompt, response).ids == conversation_ids(tokens, prompt, response)


def test_a_template_gives_what_the_tokenizer_itself_makes_of_it():
    messages = [{"role": "user", "content": "2+2="}, {"role": "assistant", "content": "4"}]
    expected = TALKS.apply_chat_template(messages, return_dict=False)
    assert conversation_ids(TALKS, "2+2=", "4") == expected


def test_a_token_that_begins_a_text_stands_there_once():
    plain, bos = beginning()
    assert conversation_ids(plain, "a", "b", separator="") == [bos, *plain.encode("ab", add_special_tokens=False), EOS]
    assert conversation_ids(plain, "<bos>a", "b", separator="") == conversation_ids(plain, "a", "b", separator="")
    talks, bos = beginning("<bos>" + CHAT)
    ids = conversation_ids(talks, "a", "b")
    assert (ids[0], ids.count(bos), ids.count(EOS)) == (bos, 1, 0)
    again = conversation(plain, "<bos>a", "b", separator="", ended=False)
    assert (again.ids.count(bos), text(plain, again.ids[again.response.start : again.response.stop])) == (1, "b")


def test_nothing_is_cut():
    ids = conversation_ids(PLAIN, "2+2=", "4", 7)
    assert len(ids) == 7
    with pytest.raises(TooLongError, match="prompt and response are 7 tokens, and the reward model reads 6"):
        conversation_ids(PLAIN, "2+2=", "4", 6)
    with pytest.raises(TooLongError, match="are 8 tokens"):
        conversation(PLAIN, "2+2=", "4", 7, closing=EOS)
    with pytest.raises(ValueError, match="not a single token"):
        conversation_ids(PLAIN, "", "", separator="")


@pytest.mark.parametrize("side", ["left", "right"])
def test_neither_padding_nor_truncation_sides_matter(side):
    tokens = tokenizer(CHAT, padding_side=side, truncation_side=side, model_max_length=4)
    assert conversation_ids(tokens, "a", "b") == conversation_ids(TALKS, "a", "b")


@pytest.mark.parametrize(
    ("tokens", "response", "ended", "own"),
    [
        (TALKS, "yes", True, "yes|"),
        (TALKS, "yes", False, "yes"),
        (TALKS, "  yes ", False, "yes"),
        (TALKS, "assistant>|", True, "assistant>||"),
        (TALKS, "", True, "|"),
        (TALKS, "", False, ""),
        (PLAIN, "yes", True, "yes"),
        (PLAIN, "\n yes\n", True, "\n yes\n"),
        (PLAIN, "", True, ""),
    ],
)
def test_the_response_s_own_tokens(tokens, response, ended, own):
    found = conversation(tokens, "is it so?", response, ended=ended)
    assert text(tokens, [found.ids[place] for place in found.response]) == own


def test_a_response_that_ended_is_closed_where_nothing_else_does_that():
    closed = conversation(PLAIN, "a", "b", separator="", ended=True, closing=EOS)
    assert (text(PLAIN, closed.ids[:-1]), closed.ids[-1], closed.response) == ("ab", EOS, range(1, 3))
    cut = conversation(PLAIN, "a", "b", separator="", ended=False, closing=EOS)
    assert (text(PLAIN, cut.ids), cut.response) == ("ab", range(1, 2))
    own, _ = beginning()
    assert conversation(own, "a", "b", separator="", closing=EOS).ids.count(EOS) == 1
    assert conversation(own, "a", "b", separator="").response == range(2, 4)


def test_tokens_of_several_characters_that_reach_into_the_response_are_its_own():
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    vocabulary = {"<unk>": 0, "a": 1, "b": 2, "ab": 3, "?": 4, "?a": 5}
    merges = [("?", "a"), ("a", "b")]
    tokens = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>")), unk_token="<unk>"
    )
    joined = conversation(tokens, "ab?", "ab", separator="", ended=False)
    assert (joined.ids, joined.response) == ([3, 5, 2], range(1, 3))
