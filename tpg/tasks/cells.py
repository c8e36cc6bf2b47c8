"""What a cell of a table holds: a prompt, a chat or a response."""

import reprlib
from typing import Any

from tpg.errors import UserError
from tpg.tasks.base import Message

Prompt = str | tuple[Message, ...]


def prompt_of(value: Any, place: str) -> Prompt:
    """A cell that holds a prompt. Raises `UserError` that begins with `place` if it holds none."""
    if isinstance(value, str) and value.strip():
        return value
    messages = messages_of(value, place)
    if messages[-1]["role"] == "assistant":
        raise UserError(f"{place} ends with the assistant's turn, which is the response: leave it out")
    return messages


def messages_of(value: Any, place: str) -> tuple[Message, ...]:
    """A cell that holds a chat, without fields that are empty, which templates take for fields that are there."""
    if isinstance(value, list) and value and all(map(_is_message, value)):
        return tuple({key: field for key, field in message.items() if field is not None} for message in value)
    raise UserError(f"{place} must be text or a list of messages ({{role, content}}), not {reprlib.repr(value)}")


def response_of(value: Any, place: str) -> str:
    """A cell that holds a response: text, or a chat that ends with the assistant's turn, of which that is taken."""
    if isinstance(value, str):
        if value.strip():
            return value
        raise UserError(f"{place} is empty")
    last = messages_of(value, place)[-1]
    if last["role"] != "assistant":
        raise UserError(f"{place} does not end with the assistant's turn, but with that of '{last['role']}'")
    return str(last["content"])


def _is_message(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(value.get(key), str) for key in ("role", "content"))
