"""From a task's prompts to the tokens that a policy reads."""

import reprlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from tpg.errors import UserError
from tpg.tasks.base import Example, Message, Task


@dataclass(frozen=True)
class Rendered:
    """Prompts as tokens."""

    examples: tuple[Example, ...]
    token_ids: tuple[tuple[int, ...], ...]
    """One a kept example."""
    filtered: int
    """How many prompts were left out because they are too long."""


def render_prompts(
    task: Task,
    examples: Sequence[Example],
    tokenizer: Any,
    max_prompt_tokens: int,
    overlong: Literal["raise", "filter"],
) -> Rendered:
    """Tokens of every prompt, through the tokenizer's chat template if it has one. No prompt is cut.

    Raises `UserError` for a prompt over the limit (unless `overlong="filter"`), when none is left, when the template
    refuses a prompt, and when the task asks for what only a chat template gives.
    """
    for key in ("system_prompt", "chat_template_kwargs"):
        if getattr(task, key) and not tokenizer.chat_template:
            raise UserError(f"task.{key} needs a chat template, and the policy's tokenizer has none: leave it out")
    rendered = [(example, _token_ids(task, example, tokenizer)) for example in examples]
    kept = [(example, token_ids) for example, token_ids in rendered if len(token_ids) <= max_prompt_tokens]
    if len(kept) < len(rendered) and (overlong == "raise" or not kept):
        longest, token_ids = max(rendered, key=lambda pair: len(pair[1]))
        raise UserError(
            f"rollout.max_prompt_tokens={max_prompt_tokens}: {len(rendered) - len(kept)} of {len(rendered)} prompts "
            f"are longer, the longest {len(token_ids)} tokens ({reprlib.repr(longest.text)}): raise it"
            + (", or leave them out with task.overlong_prompts=filter" if kept else "")
        )
    return Rendered(
        examples=tuple(example for example, _ in kept),
        token_ids=tuple(token_ids for _, token_ids in kept),
        filtered=len(rendered) - len(kept),
    )


def check_context(rendered: Rendered, max_response_tokens: int, max_positions: int | None) -> None:
    """Raise `UserError` if a prompt and its response could be longer than the context that the policy was made for."""
    longest = max(map(len, rendered.token_ids))
    if max_positions is not None and longest + max_response_tokens > max_positions:
        raise UserError(
            f"rollout.max_response_tokens={max_response_tokens}: with the longest prompt of {longest} tokens that is"
            f" more than the {max_positions} tokens of the policy's context"
            + (
                f"; at most {max_positions - longest} fit"
                if longest < max_positions
                else "; leave such prompts out: task.overlong_prompts=filter and a smaller rollout.max_prompt_tokens"
            )
        )


def _token_ids(task: Task, example: Example, tokenizer: Any) -> tuple[int, ...]:
    from jinja2 import TemplateError

    if not tokenizer.chat_template:
        return tuple(tokenizer(example.text)["input_ids"])
    try:
        return tuple(
            tokenizer.apply_chat_template(
                _messages(task, example), add_generation_prompt=True, return_dict=False, **task.chat_template_kwargs
            )
        )
    except TemplateError as error:
        raise UserError(
            f"the policy's chat template refuses the prompt {reprlib.repr(example.text)}: {error}"
        ) from error


def _messages(task: Task, example: Example) -> list[Message]:
    messages = list(example.messages)
    if task.system_prompt is None:
        return messages
    if messages[0]["role"] == "system":
        raise UserError(f"task.system_prompt: the prompt {reprlib.repr(example.text)} has a system message of its own")
    return [{"role": "system", "content": task.system_prompt}, *messages]
