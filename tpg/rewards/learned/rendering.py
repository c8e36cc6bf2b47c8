"""A prompt and a response as the tokens that a reward model reads, when it is trained and when it scores."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Prompt = str | Sequence[Mapping[str, Any]]
"""The user's message, or a whole chat up to the assistant's turn."""
SEPARATOR = "\n\n"
"""Between prompt and response where the tokenizer has no chat template."""
STAND_IN = "\ue000"


class TooLongError(ValueError):
    """A conversation has more tokens than the model reads. Nothing is ever cut."""


@dataclass(frozen=True)
class Conversation:
    """A prompt and a response to it as tokens."""

    ids: list[int]
    response: range
    """The places of the response's own tokens: those of its text, and then the one that ends it if it has ended."""


def conversation_ids(
    tokenizer: Any, prompt: Prompt, response: str, max_tokens: int | None = None, separator: str = SEPARATOR
) -> list[int]:
    """The tokens of the prompt and, as the assistant's message, of the response, by the tokenizer's chat template.

    Without a template they are the tokens of prompt, `separator` and response. Raises `TooLongError` where there are
    more than `max_tokens`: a reward of something else than the whole conversation would be one of another response.
    """
    text, special = _rendered(tokenizer, prompt, response, separator)
    ids = tokenizer(text, add_special_tokens=special, verbose=False)["input_ids"]
    return _fitting(ids[_repeated_bos(tokenizer, ids) :], max_tokens)


def conversation(
    tokenizer: Any,
    prompt: Prompt,
    response: str,
    max_tokens: int | None = None,
    separator: str = SEPARATOR,
    *,
    ended: bool = True,
    closing: int | None = None,
) -> Conversation:
    """The same tokens, and which are the response's own; the tokenizer must tell where its tokens stand in a text.

    If the response has `ended` the token after its text is its own too: what the template ends a turn with, or what the
    tokenizer puts last. Without either `closing` is added, if given.
    """
    text, special = _rendered(tokenizer, prompt, response, separator)
    before, _, after = _rendered(tokenizer, prompt, STAND_IN, separator)[0].rpartition(STAND_IN)
    start, end = _in_common(text, before), len(text) - _in_common(text[::-1], after[::-1])
    encoded = tokenizer(text, add_special_tokens=special, return_offsets_mapping=True, verbose=False)
    skipped = _repeated_bos(tokenizer, encoded["input_ids"])
    ids, spans = encoded["input_ids"][skipped:], encoded["offset_mapping"][skipped:]
    places = [place for place, (first, last) in enumerate(spans) if first < end and last > start and last > first]
    if places:
        first, stop = places[0], places[-1] + 1
    else:
        first = stop = max((place + 1 for place, span in enumerate(spans) if 0 < span[1] <= start), default=0)
    if ended and stop == len(ids) and closing is not None:
        ids = [*ids, closing]
    return Conversation(_fitting(ids, max_tokens), range(first, min(stop + ended, len(ids))))


def _rendered(tokenizer: Any, prompt: Prompt, response: str, separator: str) -> tuple[str, bool]:
    """The conversation's text, and whether the tokenizer is to add special tokens: a template writes them itself."""
    messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt)
    if tokenizer.chat_template:
        whole = [*messages, {"role": "assistant", "content": response}]
        return tokenizer.apply_chat_template(whole, tokenize=False), False
    return "\n".join(message["content"] for message in messages) + separator + response, True


def _in_common(text: str, other: str) -> int:
    """With how many characters both begin."""
    pairs = enumerate(zip(text, other, strict=False))
    return next((place for place, (one, two) in pairs if one != two), min(len(text), len(other)))


def _repeated_bos(tokenizer: Any, ids: Sequence[int]) -> int:
    """How many tokens at the beginning repeat the one that begins a sequence: the text may bring one of its own."""
    bos, count = tokenizer.bos_token_id, 0
    while bos is not None and list(ids[count : count + 2]) == [bos, bos]:
        count += 1
    return count


def _fitting(ids: list[int], max_tokens: int | None) -> list[int]:
    if not ids:
        raise ValueError("prompt and response are not a single token")
    if max_tokens is not None and len(ids) > max_tokens:
        raise TooLongError(f"prompt and response are {len(ids)} tokens, and the reward model reads {max_tokens}")
    return ids
