"""Continuations that have no lane yet: in which order they come, and how their prefixes are computed."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tpg.policies.attention import Decoder
from tpg.rollouts.engine import Continuation, Prefix
from tpg.rollouts.native.attention import Reading
from tpg.rollouts.native.cache import Context
from tpg.rollouts.native.decoding import Decoded, Start, Work

READ_TOKENS = 8192
"""Tokens of prefixes that are read in one pass, unless one alone is longer."""


@dataclass(frozen=True, eq=False)
class Kept:
    """A finished response that can be continued from any of its tokens without computing anything again."""

    prompt_ids: tuple[int, ...]
    tokens: tuple[int, ...]
    prompt: Context
    response: Context
    states_TH: Tensor
    """The hidden state that predicted each token."""

    def start(self, prefix: Prefix) -> Start | None:
        """Where a prefix of it is continued; None if it is not its prefix."""
        given = len(prefix.response_ids)
        if given >= len(self.tokens) or prefix.prompt_ids != self.prompt_ids:
            return None
        if self.tokens[:given] != prefix.response_ids:
            return None
        response = self.response if given else None
        return Start(self.prompt, response, given, len(self.prompt_ids) + given, self.states_TH[given])


def keep(wanted: Continuation, decoded: Decoded) -> Kept | None:
    """A response to a prompt, kept; None for a continuation of another response."""
    prompt, response, states_TH = decoded.prompt, decoded.context, decoded.states_TH
    if prompt is None or response is None or states_TH is None or wanted.prefix.response_ids:
        return None
    return Kept(wanted.prefix.prompt_ids, tuple(decoded.tokens), prompt, response, states_TH)


class Waiting:
    """A queue of prefixes with the continuations that are wanted of each."""

    def __init__(
        self, rows: Sequence[Continuation], kept: Mapping[int, Kept], decoder: Decoder, device: torch.device
    ) -> None:
        members: dict[int, list[tuple[int, Continuation]]] = {}
        for row, wanted in enumerate(rows):
            members.setdefault(id(wanted.prefix), []).append((row, wanted))
        self._queue = deque(sorted(members.values(), key=lambda part: _order(part[0][1].prefix)))
        self._starts: dict[int, Start] = {}
        self._kept = kept
        self._decoder = decoder
        self._device = device

    def next(self, free: int) -> list[Work]:
        """The next prefixes for at most so many lanes; a large group takes what there is and waits for the rest."""
        chosen: list[list[tuple[int, Continuation]]] = []
        while self._queue and free:
            part = self._queue.popleft()
            chosen.append(part[:free])
            if len(part) > free:
                self._queue.appendleft(part[free:])
            free -= len(chosen[-1])
        self._compute([part[0][1].prefix for part in chosen])
        work = [(self._starts[id(part[0][1].prefix)], part) for part in chosen]
        begun = {id(self._queue[0][0][1].prefix)} if self._queue else set()
        self._starts = {key: start for key, start in self._starts.items() if key in begun}
        return work

    def _compute(self, prefixes: Sequence[Prefix]) -> None:
        unread: list[Prefix] = []
        for prefix in prefixes:
            if id(prefix) in self._starts:
                continue
            kept = self._kept.get(prefix.parent)
            start = kept.start(prefix) if kept is not None else None
            if start is None:
                unread.append(prefix)
            else:
                self._starts[id(prefix)] = start
        while unread:
            together = [unread.pop(0)]
            tokens = _given(together[0])
            while unread and tokens + _given(unread[0]) <= READ_TOKENS:
                tokens += _given(unread[0])
                together.append(unread.pop(0))
            self._read(together)

    def _read(self, prefixes: Sequence[Prefix]) -> None:
        """One pass over several prefixes without a padding token."""
        sequences = [(*prefix.prompt_ids, *prefix.response_ids) for prefix in prefixes]
        reading = Reading([len(ids) for ids in sequences])
        ids_1N = torch.tensor([[i for ids in sequences for i in ids]], device=self._device)
        positions_1N = torch.cat([torch.arange(len(ids)) for ids in sequences])[None].to(self._device)
        states_NH = self._decoder(ids_1N, positions_1N, reading)[0]
        end = 0
        for prefix, ids, context in zip(prefixes, sequences, reading.contexts, strict=True):
            end += len(ids)
            # A copy: a view would keep the states of all the prefixes alive.
            self._starts[id(prefix)] = Start(context, None, 0, len(ids), states_NH[end - 1].clone())


def _given(prefix: Prefix) -> int:
    return len(prefix.prompt_ids) + len(prefix.response_ids)


def _order(prefix: Prefix) -> tuple[object, ...]:
    """Long responses first, so that the batch is full to the end; prompts of similar lengths are read together.

    Continuations of a response stay together: they look back to the same tokens.
    """
    if prefix.parent >= 0:
        return (0, prefix.prompt_ids, prefix.parent, len(prefix.response_ids))
    return (-prefix.max_tokens, -len(prefix.prompt_ids))
