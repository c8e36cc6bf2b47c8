"""The reward of the task `sort`."""

from tpg.component import component
from tpg.rewards.base import AnswerTerm, Sample


@component
class SortedDigits(AnswerTerm):
    """The share of positions that hold the answer's digit, or, without `partial`, 1 if all do and else 0.

    A truncated response, and one whose length is not the answer's, gets 0.
    """

    partial: bool = True

    def compare(self, sample: Sample, answer: str) -> float:
        """Give a value in [0, 1]."""
        response = sample.response.strip()
        if sample.truncated or len(response) != len(answer):
            return 0.0
        if not self.partial:
            return float(response == answer)
        return sum(ours == theirs for ours, theirs in zip(response, answer, strict=True)) / len(answer)
