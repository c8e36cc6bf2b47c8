"""A reward term: a class, so that it has options of its own that are checked before anything is loaded."""

from pydantic import Field

from tpg.component import component
from tpg.rewards.base import RewardTerm, Sample


@component
class NoRepetition(RewardTerm):
    """Distinct runs of `tokens` tokens over all of them: 1 for a response that never repeats itself."""

    tokens: int = Field(default=3, ge=1)

    def score(self, sample: Sample) -> float:
        """Give a value in [0, 1]; 1 for a response that is too short to repeat itself."""
        ids, n = sample.token_ids, self.tokens
        runs = [ids[i : i + n] for i in range(len(ids) - n + 1)]
        return len(set(runs)) / len(runs) if runs else 1.0
