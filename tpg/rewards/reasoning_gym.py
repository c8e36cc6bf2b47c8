"""Rewards from Reasoning Gym's own scorers."""

from collections.abc import Callable
from functools import cache

from pydantic import Field

from tpg.component import component
from tpg.rewards.base import RewardTerm, Sample


@component
class ReasoningGymScore(RewardTerm):
    """What the dataset's scorer says of the response, mostly in [0, 1]. (arXiv 2505.24760.)

    With `answer_tag` only the text of the last `<tag>...</tag>` is scored, and a response without one gets 0.
    Reads the columns `dataset` (Reasoning Gym's name of it) and `entry` (the entry as the dataset made it).
    """

    answer_tag: str | None = Field(default=None, pattern=r"^\w+$")

    def required_columns(self) -> frozenset[str]:
        """Name `dataset` and `entry`."""
        return frozenset({"dataset", "entry"})

    def warm_up(self) -> None:
        """Import the library."""
        import reasoning_gym  # noqa: F401

    def score(self, sample: Sample) -> float:
        """Ask the scorer. Raises `ValueError` when Reasoning Gym has no such dataset."""
        from reasoning_gym.utils import extract_answer

        answer = sample.response.strip()
        if self.answer_tag is not None:
            answer = extract_answer(sample.response, tag_name=self.answer_tag)
            if answer is None:
                return 0.0
        return _scorer(sample.columns["dataset"])(answer=answer, entry=sample.columns["entry"])


@cache  # some datasets read their word lists when built
def _scorer(dataset: str) -> Callable[..., float]:
    import reasoning_gym

    return reasoning_gym.get_score_answer_fn(dataset)
