"""Rewards for the response's length, counted in its tokens (a sampled end-of-sequence token included)."""

from pydantic import Field, ValidationInfo, field_validator

from tpg.component import component
from tpg.rewards.base import RewardTerm, Sample


@component
class LengthTarget(RewardTerm):
    """`max(0, 1 - |length - target_tokens| / tolerance_tokens)`.

    1 at the target, 1/2 at half the tolerance from it on either side, 0 from the tolerance on.
    """

    target_tokens: int = Field(gt=0)
    tolerance_tokens: int = Field(gt=0)

    def score(self, sample: Sample) -> float:
        """Give a value in [0, 1]."""
        return max(0.0, 1.0 - abs(len(sample.token_ids) - self.target_tokens) / self.tolerance_tokens)


@component
class SoftOverlong(RewardTerm):
    """0 up to `max_tokens - buffer_tokens`, falling linearly to -1 at `max_tokens`. (DAPO, arXiv 2503.14476.)"""

    max_tokens: int = Field(gt=0)
    buffer_tokens: int = Field(gt=0)

    @field_validator("buffer_tokens")
    @classmethod
    def _fits(cls, buffer_tokens: int, others: ValidationInfo) -> int:
        max_tokens = others.data.get("max_tokens")
        if max_tokens is not None and buffer_tokens > max_tokens:
            raise ValueError(f"{buffer_tokens} is more than max_tokens={max_tokens}")
        return buffer_tokens

    def score(self, sample: Sample) -> float:
        """Give a value in [-1, 0]."""
        left = self.max_tokens - self.buffer_tokens - len(sample.token_ids)
        return max(-1.0, min(0.0, left / self.buffer_tokens))
