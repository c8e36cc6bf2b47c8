"""The one record that flows through an iteration.

Dimensions in names: B trajectories, T response tokens, P prompt tokens, G responses of one prompt, V vocabulary.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum

import torch
from torch import Tensor


class FinishReason(IntEnum):
    """Why a response ended."""

    STOP = 0
    """The policy sampled its end-of-sequence token."""
    LENGTH = 1
    """It was cut at the limit on response tokens."""


@dataclass(frozen=True, eq=False)
class Trajectories:
    """B prompts with one response each; every stage returns a copy with one more field.

    Prompts are padded on the left and responses on the right, so that a response starts at the same column in every
    row. Masks, never pad ids, tell what is real: many tokenizers pad with their end-of-sequence token.
    """

    prompt_ids_BP: Tensor
    prompt_mask_BP: Tensor
    response_ids_BT: Tensor
    response_mask_BT: Tensor
    """Tokens that exist: the end-of-sequence token counts, whatever follows does not."""
    action_mask_BT: Tensor
    """Tokens that the policy chose; a subset of `response_mask_BT`, to which tool output would not belong."""
    rollout_logprobs_BT: Tensor
    """The engine's log-probabilities at the sampling temperature, nats."""
    row_B: Tensor
    """The prompt's row in the task's data."""
    draw_B: Tensor
    """How many times that row had been drawn before."""
    response_index_B: Tensor
    """0..G-1 within the prompt's group."""
    finish_reason_B: Tensor
    parent_B: Tensor
    """For a continuation the trajectory whose prefix it continues, else -1."""
    position_B: Tensor
    """For a continuation how many response tokens of its parent it was given, else 0."""
    version_B: Tensor
    """Iterations the policy had been trained for when it generated this; older than the trainer's means off-policy."""
    rewards_B: Tensor | None = None
    scored_B: Tensor | None = None
    """False where a reward term failed: out of every baseline and of the loss."""
    reward_terms_B: Mapping[str, Tensor] = field(default_factory=dict)
    """Each term before its weight, NaN where it failed."""
    old_logprobs_BT: Tensor | None = None
    """The trainer's log-probabilities before the update; None while policy and old policy are one."""
    ref_logprobs_BT: Tensor | None = None
    entropy_BT: Tensor | None = None
    sum_squared_probs_BT: Tensor | None = None
    """Sum over the vocabulary of the squared probability."""
    score_norms_B: Tensor | None = None
    """Squared norm of the gradient of the response's log-probability in the policy's parameters."""
    uniforms_BT: Tensor | None = None
    """A random number in [0, 1) for every token, for estimators that decide by lot."""
    values_BT: Tensor | None = None
    """A critic's value before each token: of the prompt and the response tokens so far."""
    returns_BT: Tensor | None = None
    """What those values are regressed on: the reward that the estimator saw, as it is worth before each token."""
    weights_BT: Tensor | None = None
    """What the estimator makes of the rewards: the factor of each token's score function."""

    def __len__(self) -> int:
        return self.response_ids_BT.shape[0]

    @property
    def lengths_B(self) -> Tensor:
        """Response tokens of each trajectory."""
        return self.response_mask_BT.sum(-1)

    @property
    def truncated_B(self) -> Tensor:
        """Whether the response was cut at the limit."""
        return self.finish_reason_B == FinishReason.LENGTH

    @property
    def group_B(self) -> Tensor:
        """The group of each trajectory, 0..number of groups - 1: same prompt row, same draw."""
        # One number a pair: `unique` over pairs is slower by far.
        rows = int(self.row_B.max()) + 1 if len(self) else 1
        return torch.unique(self.draw_B * rows + self.row_B, return_inverse=True)[1]

    def replace(self, **fields: object) -> Trajectories:
        """A copy with some fields set."""
        return dataclasses.replace(self, **fields)  # type: ignore[arg-type]

    def to(self, device: torch.device | str) -> Trajectories:
        """A copy on `device`."""
        return self._map(lambda tensor: tensor.to(device))

    def select(self, index: Tensor) -> Trajectories:
        """The trajectories that `index` (integers or booleans) picks, in its order."""
        return self._map(lambda tensor: tensor[index])

    def trimmed(self) -> Trajectories:
        """A copy without the columns that are padding in every row; at least one column of each kind stays."""
        prompt = max(1, int(self.prompt_mask_BP.sum(-1).max())) if len(self) else 1
        response = max(1, int(self.lengths_B.max())) if len(self) else 1
        fields = {}
        for name, tensor in self.tensors().items():
            if name.endswith("_BP"):
                fields[name] = tensor[:, -prompt:]
            elif name.endswith("_BT"):
                fields[name] = tensor[:, :response]
        return self.replace(**fields)

    def tensors(self) -> dict[str, Tensor]:
        """The fields that are there, by name; without the rewards by term."""
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        return {name: value for name, value in values.items() if isinstance(value, Tensor)}

    def _map(self, function) -> Trajectories:  # type: ignore[no-untyped-def]
        terms = {name: function(values_B) for name, values_B in self.reward_terms_B.items()}
        return self.replace(reward_terms_B=terms, **{name: function(tensor) for name, tensor in self.tensors().items()})


def concatenate(parts: Sequence[Trajectories]) -> Trajectories:
    """One record of several, padded to the widest. All must hold the same fields."""
    prompt = max(part.prompt_ids_BP.shape[1] for part in parts)
    response = max(part.response_ids_BT.shape[1] for part in parts)
    padded = []
    for part in parts:
        fields = {}
        for name, tensor in part.tensors().items():
            if name.endswith("_BP"):
                fields[name] = torch.nn.functional.pad(tensor, (prompt - tensor.shape[1], 0))
            elif name.endswith("_BT"):
                fields[name] = torch.nn.functional.pad(tensor, (0, response - tensor.shape[1]))
            else:
                fields[name] = tensor
        padded.append(fields)
    terms = {name: torch.cat([part.reward_terms_B[name] for part in parts]) for name in parts[0].reward_terms_B}
    merged = {name: torch.cat([fields[name] for fields in padded]) for name in padded[0]}
    return Trajectories(reward_terms_B=terms, **merged)
