import pytest
from tokenizers import Regex, Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from tpg.errors import UserError
from tpg.tasks.addition import Addition
from tpg.tasks.base import Example
from tpg.tasks.rendering import render_prompts

TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'tool' %}{{ raise_exception('No tools') }}{% endif %}"
    "{{ m.role[0] }}:{{ m.content }};{% endfor %}"
    "{% if add_generation_prompt %}a:{% endif %}{% if shout is defined %}!{% endif %}"
)


def make_tokenizer(template: str | None = TEMPLATE) -> PreTrainedTokenizerFast:
    """One token a character; `^` is put before every text that is not from the template."""
    vocabulary = {character: i for i, character in enumerate("^abcdefghijklmnopqrstuvwxyz:;!? \n")}
    core = Tokenizer(models.WordLevel(vocabulary, unk_token="?"))
    core.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    core.post_processor = processors.TemplateProcessing(single="^ $A", special_tokens=[("^", 0)])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, bos_token="^", unk_token="?")
    tokenizer.chat_template = template
    return tokenizer


def render(prompt, template=TEMPLATE, **fields) -> str:
    tokenizer = make_tokenizer(template)
    rendered = render_prompts(Addition(**fields), [Example(prompt)], tokenizer, 99, "raise")
    ((*token_ids,),) = rendered.token_ids
    assert all(type(token_id) is int for token_id in token_ids)
    return "".join(tokenizer.convert_ids_to_tokens(token_ids))


CHAT = ({"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}, {"role": "user", "content": "he"})


def test_chat_template():
    assert render("hi") == "^u:hi;a:"
    assert render(CHAT) == "^u:hi;a:ho;u:he;a:"
    assert render("hi", system_prompt="be") == "^s:be;u:hi;a:"
    assert render("hi", chat_template_kwargs={"shout": True}) == "^u:hi;a:!"


def test_without_a_template_the_text_is_the_prompt():
    assert render("hi", template=None) == "^hi"
    assert render(CHAT, template=None) == "^hi\nho\nhe"


@pytest.mark.parametrize("fields", [{"system_prompt": "be"}, {"chat_template_kwargs": {"shout": True}}])
def test_what_needs_a_template(fields):
    (key,) = fields
    with pytest.raises(UserError, match=rf"task\.{key} needs a chat template"):
        render("hi", template=None, **fields)


def test_two_system_messages():
    with pytest.raises(UserError, match=r"task\.system_prompt: .* system message of its own"):
        render(({"role": "system", "content": "be"}, {"role": "user", "content": "hi"}), system_prompt="do")


def test_a_prompt_that_the_template_refuses():
    with pytest.raises(UserError, match="chat template refuses the prompt 'hi': No tools"):
        render(({"role": "tool", "content": "hi"},))


def test_overlong_prompts():
    short, long = Example("hi", answer="1"), Example("hello", answer="2")
    task, tokenizer = Addition(), make_tokenizer(None)
    with pytest.raises(
        UserError, match=r"rollout\.max_prompt_tokens=3: 1 of 2 .* longest 6 tokens .*overlong_prompts=filter"
    ):
        render_prompts(task, [short, long], tokenizer, 3, "raise")
    rendered = render_prompts(task, [long, short], tokenizer, 3, "filter")
    assert rendered.examples == (short,)
    assert rendered.token_ids == ((0, 8, 9),)
    assert rendered.filtered == 1
    assert render_prompts(task, [long, short], tokenizer, 6, "raise").filtered == 0
    with pytest.raises(UserError, match=r"rollout\.max_prompt_tokens=2: 2 of 2 prompts .*: raise it$"):
        render_prompts(task, [long, short], tokenizer, 2, "filter")
