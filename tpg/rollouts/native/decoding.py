"""The decoding loop: lanes that are fed a token a step, filled again as they empty."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from tpg.errors import UserError
from tpg.policies.attention import Decoder
from tpg.randomness import uniforms
from tpg.rollouts.engine import Continuation
from tpg.rollouts.native.attention import Feeding
from tpg.rollouts.native.cache import Context, Own, Shared
from tpg.rollouts.sampling import Sampling, draw, on_device
from tpg.trajectories import FinishReason


@dataclass(frozen=True, eq=False)
class Start:
    """Where the continuations of a prefix start: what was computed of it."""

    prompt: Context
    """Of the prompt, or of all the given tokens."""
    response: Context | None
    """Of a response whose first `given` tokens are continued; None if all that is given is in `prompt`."""
    given: int
    position: int
    """Of the first new token in the whole sequence."""
    state_H: Tensor
    """The hidden state that predicts the first new token."""


@dataclass(eq=False)
class Lane:
    """A response being decoded."""

    row: int
    """Its place in the output."""
    start: Start
    limit: int
    uniforms_T: Tensor
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    states: list[Tensor] = field(default_factory=list)
    """The hidden states that predicted its tokens, where they are kept."""


@dataclass(frozen=True, eq=False)
class Decoded:
    """A finished response."""

    row: int
    tokens: list[int]
    logprobs: Tensor
    finish: FinishReason
    prompt: Context | None
    """What its start looked back to, where that is kept; else it is let go as soon as no lane needs it."""
    context: Context | None
    """All its tokens but the last, where they are kept."""
    states_TH: Tensor | None


Work = tuple[Start, list[tuple[int, Continuation]]]
"""A start and the continuations wanted from it, each with its place in the output."""


class Decoding:
    """Decodes at most so many lanes at once, on a decoder whose weights stay as they are."""

    def __init__(
        self,
        decoder: Decoder,
        sampling: Sampling,
        end_ids: frozenset[int],
        lanes: int,
        most_tokens: int,
        *,
        keep: bool,
    ) -> None:
        self.decoder = decoder
        self.sampling = sampling
        self.end_ids = end_ids
        self.capacity = lanes
        self.keep = keep
        self.lanes: list[Lane] = []
        self._own = Own(lanes, most_tokens)
        self._prompts, self._responses = Shared(), Shared()
        self._shared: list[Shared] = []
        self._changed = False

    def run(self, refill: Callable[[int], list[Work]], on_step: Callable[[], None]) -> Iterator[list[Decoded]]:
        """Decode everything; gives what ends at each step. `refill(free)` computes starts for so many free lanes."""
        while True:
            free = self.capacity - len(self.lanes)
            admitted = refill(free) if free >= max(1, self.capacity // 4) else []
            if admitted:
                yield self._admit(admitted)
            elif not self.lanes:
                return
            if self.lanes:
                yield self._step()
                on_step()

    def _admit(self, work: Sequence[Work]) -> list[Decoded]:
        """New lanes with their first token."""
        first, owners = len(self.lanes), []
        for number, (start, rows) in enumerate(work):
            for row, wanted in rows:
                uniforms_T = uniforms([wanted.key], wanted.prefix.max_tokens)[0]
                self.lanes.append(Lane(row, start, wanted.prefix.max_tokens, uniforms_T))
                owners.append(number)
        self._own.admit(len(owners))
        self._changed = True
        states_WH = torch.stack([start.state_H for start, _ in work])
        owners_R = torch.tensor(owners, device=states_WH.device)
        return self._take(states_WH[owners_R], self.decoder.head(states_WH)[owners_R], first)

    def _step(self) -> list[Decoded]:
        """Feed every lane its last token and draw the next."""
        if self._changed:
            self._arrange()
        device = self.lanes[0].start.state_H.device
        self._own.feed(device)
        ids_R1 = torch.tensor([[lane.tokens[-1]] for lane in self.lanes], device=device)
        positions = [[lane.start.position + len(lane.tokens) - 1] for lane in self.lanes]
        attention = Feeding(self._shared, self._own)
        states_RH = self.decoder(ids_R1, torch.tensor(positions, device=device), attention)[:, 0]
        return self._take(states_RH, self.decoder.head(states_RH), 0)

    def _arrange(self) -> None:
        """Which contexts the lanes look back to, now that some have come or gone."""
        starts = [lane.start for lane in self.lanes]
        self._prompts.arrange([start.prompt for start in starts], [start.prompt.tokens for start in starts])
        self._shared = [self._prompts]
        some = next((start.response for start in starts if start.response is not None), None)
        if some is not None:
            # A lane that continues no response looks at none of the tokens of whichever it is put to.
            seen = [start.given if start.response is not None else 0 for start in starts]
            self._responses.arrange([start.response or some for start in starts], seen)
            self._shared.append(self._responses)
        self._changed = False

    def _take(self, states_RH: Tensor, logits_RV: Tensor, first: int) -> list[Decoded]:
        """Draw a token for every lane from `first` on; return those that end with it."""
        lanes = self.lanes[first:]
        uniforms_R = on_device(torch.stack([lane.uniforms_T[len(lane.tokens)] for lane in lanes]), states_RH.device)
        drawn = draw(logits_RV, uniforms_R, self.sampling)
        for lane, token, logprob, state_H in zip(
            lanes, drawn.tokens_B.tolist(), drawn.logprobs_B.tolist(), states_RH, strict=True
        ):
            if math.isnan(logprob):
                raise UserError("the policy's logits are not finite; lower optimizer.lr, or trainer.precision=32-true")
            lane.tokens.append(token)
            lane.logprobs.append(logprob)
            if self.keep:
                lane.states.append(state_H)
        # From the last on: what moves into an ended lane's place has been looked at.
        ended = [i for i in range(len(self.lanes) - 1, first - 1, -1) if self._ends(self.lanes[i])]
        return [self._finish(i) for i in ended]

    def _ends(self, lane: Lane) -> bool:
        return lane.tokens[-1] in self.end_ids or len(lane.tokens) >= lane.limit

    def _finish(self, i: int) -> Decoded:
        lane = self.lanes[i]
        decoded = Decoded(
            lane.row,
            lane.tokens,
            torch.tensor(lane.logprobs, dtype=torch.float64),
            FinishReason.STOP if lane.tokens[-1] in self.end_ids else FinishReason.LENGTH,
            lane.start.prompt if self.keep else None,
            self._own.copy(i) if self.keep else None,
            torch.stack(lane.states) if self.keep else None,
        )
        self._own.remove(i)
        last = self.lanes.pop()
        if i < len(self.lanes):
            self.lanes[i] = last
        self._changed = True
        return decoded
