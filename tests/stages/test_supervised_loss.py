"""Supervised losses are the mean negative log-likelihood of response tokens, however the rows are cut into passes."""

import pytest
import torch
from builders import tiny_policy
from stage_options import SMALL, assert_passes_change_nothing, supervised_stage

from tpg.errors import UserError
from tpg.stages.supervised import SupervisedModule, end_id, tokens_of
from tpg.tasks.addition import Addition
from tpg.tasks.base import Example
from tpg.tasks.demonstrations import Demonstration
from tpg.tasks.rendering import render_prompts

PAIRS = [
    Demonstration("abc", "x"),
    Demonstration("a longer prompt:", "yes"),
    Demonstration("b", "a rather long response"),
    Demonstration("cd", "12345"),
    Demonstration("e", "67"),
]
TEMPLATE = (
    "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def made(**options):
    policy = tiny_policy(**SMALL)
    stage = supervised_stage(**options)
    tokens = tokens_of(PAIRS, policy, stage)
    return SupervisedModule(policy, tokens, tokens, stage)


def by_hand(module):
    """The negative log-likelihood of each response token in a plain forward pass of its row, nats."""
    losses = []
    for prompt, response in zip(module.data.prompts, module.data.responses, strict=True):
        ids = torch.tensor([[*prompt, *response]])
        logp = module.policy.model(ids).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
        losses.append(-logp.gather(1, torch.tensor(response)[:, None])[:, 0])
    return losses


def test_the_loss_is_the_mean_over_response_tokens():
    module = made()
    losses = by_hand(module)
    assert [len(each) for each in losses] == [2, 4, 23, 6, 3]  # each with the token that ends it
    rows = (0, 2, 3)
    loss, _ = module.share(rows, rows)
    expected = torch.cat([losses[row] for row in rows]).sum() / (2 + 23 + 6)
    torch.testing.assert_close(loss, expected, atol=1e-6, rtol=1e-6)


def test_what_is_measured_is_the_mean_over_all_held_out_tokens():
    module = made(tokens_per_microbatch=30)
    with torch.no_grad():
        found, losses = module.measured(), torch.cat(by_hand(module))
    assert found["eval/loss"] == pytest.approx(float(losses.mean()), rel=1e-6)
    assert found["eval/perplexity"] == pytest.approx(float(losses.mean().exp()), rel=1e-5)


def test_passes_change_nothing():
    assert_passes_change_nothing(lambda tokens: made(tokens_per_microbatch=tokens), (None, 40, 1), tolerance=1e-6)


def test_prompts_are_rendered_as_in_a_rollout_and_responses_end():
    policy = tiny_policy(**SMALL)
    policy.tokenizer.chat_template = TEMPLATE
    task = Addition(system_prompt="Be brief.")
    tokens = tokens_of(PAIRS, policy, supervised_stage(task=task))
    rendered = render_prompts(task, [Example(pair.prompt) for pair in PAIRS], policy.tokenizer, 99, "raise").token_ids
    assert tokens.prompts == rendered
    assert policy.tokenizer.decode(tokens.prompts[0]) == "<system>Be brief.\n<user>abc\n<assistant>"
    assert policy.tokenizer.decode(tokens.responses[3]) == "12345<eos>"
    assert end_id(policy) == policy.tokenizer.eos_token_id


def test_a_response_that_brings_its_end_has_one_and_one_that_goes_on_is_refused():
    policy, stage = tiny_policy(**SMALL), supervised_stage()
    tokens = tokens_of([Demonstration("a", "b<eos>")], policy, stage)
    assert tokens.responses == (tuple(policy.tokenizer("b<eos>")["input_ids"]),)
    with pytest.raises(UserError, match=r"^demonstrations: the response 'b<eos>c' goes on after a token that ends"):
        tokens_of([Demonstration("a", "b<eos>c")], policy, stage)


def test_what_is_too_long_is_refused_or_left_out_and_counted():
    policy = tiny_policy(**SMALL)  # row 2 has 1 + 23 tokens, row 1 16 + 4
    with pytest.raises(
        UserError, match=r"^max_tokens=20: 1 of 5 prompts with their responses are longer, the longest 24"
    ):
        tokens_of(PAIRS, policy, supervised_stage(max_tokens=20))
    tokens = tokens_of(PAIRS, policy, supervised_stage(max_tokens=20, overlong="filter"))
    assert (len(tokens.responses), tokens.overlong) == (4, 1)
    with pytest.raises(UserError, match=r"^max_tokens=2: 5 of 5 .*: raise it$"):
        tokens_of(PAIRS, policy, supervised_stage(max_tokens=2, overlong="filter"))
    short = tiny_policy(**SMALL, max_positions=22)
    with pytest.raises(UserError, match=r"^the policy's context is 22 tokens: 1 of 5 .*overlong=filter$"):
        tokens_of(PAIRS, short, supervised_stage())
