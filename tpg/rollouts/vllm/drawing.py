"""The part that runs inside vLLM: tokens are drawn as `tpg.rollouts.sampling` draws them."""

import json
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from vllm.v1.sample.logits_processor import BatchUpdate, LogitsProcessor, process_dict_updates

from tpg.randomness import uniforms
from tpg.rollouts.sampling import Sampling, draw
from tpg.rollouts.vllm.backend import ARGUMENT


@dataclass(frozen=True, eq=False)
class _Row:
    sampling: Sampling
    uniforms: list[float]
    made: list[int]
    """The tokens that vLLM has generated for it so far; vLLM appends to it."""

    @property
    def uniform(self) -> float:
        # A prompt that is computed in parts is asked for a token after each; those before the last are thrown away.
        return self.uniforms[min(len(self.made), len(self.uniforms) - 1)]


class Drawing(LogitsProcessor):
    """Leaves each row one token, drawn by its request's key, with its log-probability for a logit.

    vLLM then takes the likeliest token and reports its "processed logit". So the log-probability is the untruncated
    policy's at the sampling temperature, and a response depends on its key alone. Requests without a key pass.
    """

    def __init__(self, vllm_config: Any, device: torch.device, is_pin_memory: bool) -> None:
        self.rows: dict[int, _Row] = {}

    @classmethod
    def validate_params(cls, sampling_params: Any) -> None:
        """See vLLM's interface; a request is what `Request.parameters` made."""

    def is_argmax_invariant(self) -> bool:
        """No: it decides which token is taken."""
        return False

    def update_state(self, batch_update: BatchUpdate | None) -> None:
        """Follow vLLM's moves of requests between rows."""
        process_dict_updates(self.rows, batch_update, _row)

    def apply(self, logits_BV: Tensor) -> Tensor:
        """Draw a token for every row that has a key."""
        rows = sorted(self.rows.items())
        for sampling in {row.sampling for _, row in rows}:
            chosen = [(place, row.uniform) for place, row in rows if row.sampling == sampling]
            places_N = torch.tensor([place for place, _ in chosen], device=logits_BV.device)
            uniforms_N = torch.tensor([uniform for _, uniform in chosen], dtype=torch.float64, device=logits_BV.device)
            drawn = draw(logits_BV[places_N], uniforms_N, sampling)
            logits_BV[places_N] = -torch.inf
            logits_BV[places_N, drawn.tokens_B] = drawn.logprobs_B.to(logits_BV.dtype)
        return logits_BV


def _row(parameters: Any, prompt_ids: list[int] | None, made: list[int]) -> _Row | None:
    given = (parameters.extra_args or {}).get(ARGUMENT)
    if given is None:
        return None
    drawing = json.loads(given)
    numbers = uniforms([int(drawing.pop("key"), 16)], drawing.pop("tokens"))[0].tolist()
    return _Row(Sampling(**drawing), numbers, made)
