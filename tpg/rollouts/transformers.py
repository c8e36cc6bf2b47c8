"""Generation by transformers' own `generate`: the engine that runs every causal language model."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from pydantic import Field
from torch import Tensor

from tpg.component import component
from tpg.policies.base import Policy
from tpg.policies.memory import tried
from tpg.randomness import uniforms
from tpg.rollouts.at_once import AtOnce
from tpg.rollouts.engine import (
    Continuation,
    Engine,
    OnFinished,
    Prefix,
    RolloutOptions,
    assembled,
    expanded,
    finished,
    no_step,
)
from tpg.rollouts.sampling import Sampling, draw, on_device
from tpg.trajectories import FinishReason, Trajectories, concatenate


@component
class Transformers(RolloutOptions):
    """`generate` on the policy's own weights; the responses to one prompt share the prompt's prefill."""

    batch_responses: int = Field(default=64, ge=1)
    """Responses decoded at once; bounds the memory of the key-value cache."""

    def build(self, policy: Policy) -> "TransformersEngine":
        """See `RolloutOptions.build`."""
        return TransformersEngine(self, policy)


class TransformersEngine(Engine):
    """transformers' `generate`, a batch of responses at a time."""

    options: Transformers

    def __init__(self, options: Transformers, policy: Policy) -> None:
        super().__init__(options, policy)
        self._at_once = AtOnce(options.batch_responses, "policy.dtype=bfloat16")

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
        """See `Engine.generate`; nothing is retained, and responses finish a batch at a time."""
        if not prefixes:
            return assembled([], [], [], [], self.policy, version)
        rows = expanded(prefixes)
        parts: list[Trajectories] = []
        start = 0
        while start < len(rows):
            some = rows[start : start + self._at_once.most]
            made = tried(partial(_generate_batch, self.policy, some, sampling, version, on_step))
            if not made:
                self._at_once.lower(len(some))
                continue
            parts += made
            if on_finished:
                on_finished(finished(made[0], start))
            start += len(some)
        return concatenate(parts)


def _generate_batch(
    policy: Policy, rows: list[Continuation], sampling: Sampling, version: int, on_step: Callable[[], None]
) -> Trajectories:
    steps = max(row.prefix.max_tokens for row in rows)
    ids_BS, mask_BS = _left_padded([(*row.prefix.prompt_ids, *row.prefix.response_ids) for row in rows], policy.pad_id)
    ids_BS, mask_BS = ids_BS.to(policy.device), mask_BS.to(policy.device)
    sampler = _Sampler(on_device(uniforms([row.key for row in rows], steps), policy.device), sampling, on_step)
    with _plain_generation(policy.model, policy.pad_id, policy.end_ids, steps) as generate:
        sequences_BS = generate(
            input_ids=ids_BS,
            attention_mask=mask_BS.long(),
            past_key_values=_shared_prefill(policy, rows, ids_BS, mask_BS),
            logits_processor=[sampler],
        )
    new_ids, finish = [], []
    for row, tokens in zip(rows, sequences_BS[:, ids_BS.shape[1] :].tolist(), strict=True):
        tokens = tokens[: row.prefix.max_tokens]
        end = next((t for t, token in enumerate(tokens) if token in policy.end_ids), None)
        new_ids.append(tokens if end is None else tokens[: end + 1])
        finish.append(FinishReason.LENGTH if end is None else FinishReason.STOP)
    logprobs_BT = torch.stack(sampler.logprobs, dim=-1).cpu()
    new_logprobs = [logprobs_BT[i, : len(ids)] for i, ids in enumerate(new_ids)]
    return assembled(rows, new_ids, new_logprobs, finish, policy, version)


class _Sampler:
    """A logits processor that draws the token itself and leaves `generate` one choice."""

    def __init__(self, uniforms_BT: Tensor, sampling: Sampling, on_step: Callable[[], None]) -> None:
        self.uniforms_BT = uniforms_BT
        self.sampling = sampling
        self.on_step = on_step
        self.logprobs: list[Tensor] = []

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        drawn = draw(scores, self.uniforms_BT[:, len(self.logprobs)], self.sampling)
        self.logprobs.append(drawn.logprobs_B)
        self.on_step()
        return torch.full_like(scores, -torch.inf).scatter(-1, drawn.tokens_B[:, None], 0.0)


@contextlib.contextmanager
def _plain_generation(model: Any, pad_id: int, end_ids: frozenset[int], steps: int) -> Iterator[Callable[..., Tensor]]:
    """`model.generate` without whatever penalties and filters the model's own generation config asks for."""
    from transformers import GenerationConfig
    from transformers.generation import LogitsProcessorList

    # peft hands its own generation config on to the model it wraps: both are put back.
    holders = [model, model.get_base_model()] if hasattr(model, "get_base_model") else [model]
    configured = [holder.generation_config for holder in holders]
    plain = GenerationConfig(
        max_new_tokens=steps, do_sample=False, eos_token_id=sorted(end_ids) or None, pad_token_id=pad_id
    )

    def generate(*, logits_processor: list[_Sampler], **inputs: Any) -> Tensor:
        return model.generate(**inputs, logits_processor=LogitsProcessorList(logits_processor))

    model.generation_config = plain
    try:
        yield generate
    finally:
        for holder, config in zip(holders, configured, strict=True):
            holder.generation_config = config


def _shared_prefill(policy: Policy, rows: list[Continuation], ids_BS: Tensor, mask_BS: Tensor) -> Any:
    """Keys and values of all but the last token, computed once a prefix; None where that saves nothing."""
    from transformers import DynamicCache

    first = {id(row.prefix): i for i, row in reversed(list(enumerate(rows)))}
    firsts = sorted(first.values())
    if len(firsts) == len(rows) or ids_BS.shape[1] < 2:
        return None
    cache = DynamicCache(config=policy.model.config)
    mask = mask_BS[firsts, :-1]
    policy.model(
        input_ids=ids_BS[firsts, :-1],
        attention_mask=mask.long(),
        position_ids=(mask.long().cumsum(-1) - 1).clamp(min=0),
        past_key_values=cache,
        use_cache=True,
        logits_to_keep=1,
    )
    place = {i: k for k, i in enumerate(firsts)}
    cache.batch_select_indices(torch.tensor([place[first[id(row.prefix)]] for row in rows], device=ids_BS.device))
    return cache


def _left_padded(sequences: Sequence[Sequence[int]], pad_id: int) -> tuple[Tensor, Tensor]:
    width = max(len(sequence) for sequence in sequences)
    ids = torch.full((len(sequences), width), pad_id)
    mask = torch.zeros(len(sequences), width, dtype=torch.bool)
    for i, sequence in enumerate(sequences):
        ids[i, width - len(sequence) :] = torch.tensor(sequence)
        mask[i, width - len(sequence) :] = True
    return ids, mask
