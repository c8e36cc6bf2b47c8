"""Our decoding loop on the policy's own weights: the default engine."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal

import torch
from pydantic import Field

from tpg.component import component
from tpg.policies.attention import why_not
from tpg.policies.base import Policy
from tpg.policies.memory import tried
from tpg.rollouts.at_once import AtOnce
from tpg.rollouts.engine import (
    Continuation,
    Engine,
    Finished,
    OnFinished,
    Prefix,
    RolloutOptions,
    assembled,
    expanded,
    no_step,
)
from tpg.rollouts.native.decoding import Decoded, Decoding
from tpg.rollouts.native.waiting import Kept, Waiting, keep
from tpg.rollouts.native.weights import CopiedWeights, OwnWeights
from tpg.rollouts.sampling import Sampling
from tpg.rollouts.transformers import Transformers, TransformersEngine
from tpg.trajectories import Trajectories


@component
class Native(RolloutOptions):
    """A loop of our own for the decoder families that it knows, transformers' `generate` for others.

    A prompt is read once for all its responses, a response that ends leaves its place to the next one, and
    continuations start from what the response's own decoding has left.
    """

    batch_responses: int = Field(default=128, ge=1)
    """Responses decoded at once; bounds the memory of keys and values."""
    dtype: Literal["auto", "policy", "bfloat16"] = "auto"
    """Of the weights that decode. auto: that of the trainer's mixed precision; policy: as the policy is held."""

    def other_precision(self, precision: str) -> str | None:
        """See `RolloutOptions.other_precision`."""
        if self.dtype == "bfloat16":
            return None if precision == "bf16-true" else "bfloat16"
        if precision.endswith("-mixed"):  # the update keeps weights and norms in float32
            half = "bfloat16" if precision.startswith("bf16") else "float16"
            return half if self.dtype == "auto" else "the type that the policy is held in"
        return None

    def decodes_in(self, precision: str) -> torch.dtype | None:
        """See `RolloutOptions.decodes_in`."""
        if self.dtype == "bfloat16" or (self.dtype == "auto" and precision == "bf16-mixed"):
            return torch.bfloat16
        return torch.float16 if self.dtype == "auto" and precision == "16-mixed" else None

    def build(self, policy: Policy) -> Engine:
        """See `RolloutOptions.build`."""
        reason = why_not(policy.model, self.max_prompt_tokens + self.max_response_tokens)
        if reason is None:
            return NativeEngine(self, policy)
        fields = {name: getattr(self, name) for name in Transformers.__dataclass_fields__}
        return Fallback(Transformers(**fields), policy, reason)


class Fallback(TransformersEngine):
    """transformers' engine, for a policy whose architecture ours does not know."""

    def __init__(self, options: Transformers, policy: Policy, reason: str) -> None:
        super().__init__(options, policy)
        self._reason = reason

    @property
    def note(self) -> str:
        """Why."""
        why = (
            f"rollout=native does not know this policy: {self._reason}; rollout=transformers generates, and reads no"
            " rollout.dtype"
        )
        more = super().note
        return why if more is None else f"{why}; {more}"


class NativeEngine(Engine):
    """Reads prefixes, decodes in lanes, and keeps what continuations will start from."""

    options: Native

    def __init__(self, options: Native, policy: Policy) -> None:
        super().__init__(options, policy)
        self._weights: OwnWeights | CopiedWeights | None = None
        self._made_for: tuple[torch.device, torch.dtype] | None = None
        self._held = False
        self._kept: dict[int, Kept] = {}
        self._at_once = AtOnce(options.batch_responses, "rollout.dtype=bfloat16")

    @torch.no_grad()
    def generate(
        self,
        prefixes: Sequence[Prefix],
        sampling: Sampling,
        *,
        version: int = 0,
        on_step: Callable[[], None] = no_step,
        retain: bool = False,
        on_finished: OnFinished | None = None,
    ) -> Trajectories:
        """See `Engine.generate`."""
        if not prefixes:
            return assembled([], [], [], [], self.policy, version)
        rows = expanded(prefixes)
        if not self._held:
            self._take_weights()
        self._held = False
        if retain:
            self.release()
        told: set[int] = set()

        def tell(ended: Sequence[Decoded]) -> None:
            new = [decoded for decoded in ended if decoded.row not in told]
            told.update(decoded.row for decoded in new)
            if on_finished and new:
                on_finished([_finished(rows[decoded.row], decoded) for decoded in new])

        decoded_rows: list[list[Decoded]] = []
        while not decoded_rows:
            lanes = min(self._at_once.most, len(rows))
            decoded_rows = tried(partial(self._decoded, rows, sampling, lanes, on_step, tell, keep=retain))
            if not decoded_rows:
                self._at_once.lower(lanes)
        done = sorted(decoded_rows[0], key=lambda decoded: decoded.row)
        if retain:
            for prompt in {decoded.prompt for decoded in done if decoded.prompt is not None}:
                prompt.separate()
            kept = {decoded.row: keep(rows[decoded.row], decoded) for decoded in done}
            self._kept = {row: response for row, response in kept.items() if response is not None}
        return assembled(
            rows,
            [decoded.tokens for decoded in done],
            [decoded.logprobs for decoded in done],
            [decoded.finish for decoded in done],
            self.policy,
            version,
        )

    def _decoded(
        self,
        rows: Sequence[Continuation],
        sampling: Sampling,
        lanes: int,
        on_step: Callable[[], None],
        tell: Callable[[Sequence[Decoded]], None],
        *,
        keep: bool,
    ) -> list[Decoded]:
        """Every row's response, as they end; each is told when it does."""
        weights, device = self._weights, self.policy.device
        assert weights is not None
        most_tokens = max(row.prefix.max_tokens for row in rows)
        decoding = Decoding(
            weights.decoder, sampling, self.policy.end_ids, lanes=lanes, most_tokens=most_tokens, keep=keep
        )
        waiting = Waiting(rows, self._kept, weights.decoder, device)
        done: list[Decoded] = []
        with torch.autocast(device.type, enabled=False):  # the weights' own type is what decodes
            for ended in decoding.run(waiting.next, on_step):
                done += ended
                tell(ended)
        return done

    def release(self) -> None:
        """Drop what was retained."""
        self._kept = {}

    @property
    def beside_trainer(self) -> bool:
        """Where the next rollout is to be generated beside the update, it decodes with a copy of the weights."""
        return self.options.lag > 0

    def hold(self) -> None:
        """See `Engine.hold`."""
        self._take_weights()
        self._held = True

    def _take_weights(self) -> None:
        """The policy's weights as they are now, in the type that decodes."""
        device, held = self.policy.device, next(self.policy.model.parameters()).dtype
        dtype = held
        if self.options.dtype == "bfloat16":
            dtype = torch.bfloat16
        elif self.options.dtype == "auto" and torch.is_autocast_enabled(device.type):
            dtype = torch.get_autocast_dtype(device.type)
        if self._weights is None or self._made_for != (device, dtype):
            copied = dtype != held or self.beside_trainer
            self._weights = CopiedWeights(self.policy, dtype) if copied else OwnWeights(self.policy)
            self._made_for = (device, dtype)
        self._weights.update()


def _finished(wanted: Continuation, decoded: Decoded) -> Finished:
    return Finished(decoded.row, (*wanted.prefix.response_ids, *decoded.tokens), decoded.finish)
