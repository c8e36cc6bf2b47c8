"""What a policy or a task may give that is rare: the end token first, no end, no pad token, more than the context."""

import math

import pytest
from iterations import token_reward, trained

from tpg.errors import UserError
from tpg.rollouts.native.engine import Native
from tpg.rollouts.transformers import Transformers
from tpg.tasks.base import Example
from tpg.tasks.rendering import Rendered, check_context

ENGINES = {"native": Native, "transformers": Transformers}


@pytest.mark.parametrize("name", ENGINES)
@pytest.mark.parametrize("ends", ["first", "never"])
def test_a_run_survives_responses_that_are_empty_or_never_end(tmp_path, monkeypatch, name, ends):
    from tpg.policies.base import Policy

    end_ids = frozenset(range(99)) if ends == "first" else frozenset()
    monkeypatch.setattr(Policy, "end_ids", property(lambda self: end_ids))
    engine = ENGINES[name](prompts=4, responses_per_prompt=4, max_response_tokens=8)
    module = trained(tmp_path, engine=engine, reward=token_reward)
    assert module.metrics["completions/clipped_ratio"] == (0.0 if ends == "first" else 1.0)
    assert module.metrics["completions/mean_length"] == (1.0 if ends == "first" else 8.0)
    assert module.metrics["update/skipped_steps"] == 0
    assert math.isfinite(module.metrics["grad_norm"])
    assert module.metrics["grad_norm"] > 0


@pytest.mark.parametrize("name", ENGINES)
def test_a_tokenizer_without_a_pad_token_changes_no_number(tmp_path, monkeypatch, name):
    from tpg.policies.base import Policy

    engine = ENGINES[name](prompts=4, responses_per_prompt=4, max_response_tokens=8)
    expected = trained(tmp_path, engine=engine)
    monkeypatch.setattr(Policy, "pad_id", property(lambda self: min(self.end_ids)))
    module = trained(tmp_path, engine=engine)
    assert module.metrics["loss"] == expected.metrics["loss"]
    assert module.metrics["grad_norm"] == expected.metrics["grad_norm"]


def rendered(*lengths):
    return Rendered(tuple(Example(str(length)) for length in lengths), tuple((7,) * length for length in lengths), 0)


def test_a_context_that_is_too_short_is_told_before_the_run():
    check_context(rendered(10, 20), 12, 32)
    check_context(rendered(10, 20), 12, None)
    with pytest.raises(UserError) as told:
        check_context(rendered(10, 20), 13, 32)
    assert str(told.value) == (
        "rollout.max_response_tokens=13: with the longest prompt of 20 tokens that is more than the 32 tokens of the"
        " policy's context; at most 12 fit"
    )
    with pytest.raises(UserError, match=r"leave such prompts out: task\.overlong_prompts=filter"):
        check_context(rendered(10, 32), 1, 32)
