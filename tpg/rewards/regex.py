"""Rewards for a format, told by a regular expression."""

import re

from pydantic import field_validator

from tpg.component import component
from tpg.rewards.base import RewardTerm, Sample


@component
class Regex(RewardTerm):
    """1 where the pattern is found in the response (or, with `full_match`, covers all of it); else 0.

    Python's `re`, so `(?s)` in front lets a dot match line ends. Raises `ValueError` on a bad pattern when built.
    """

    pattern: str
    full_match: bool = False
    ignore_case: bool = False

    @field_validator("pattern")
    @classmethod
    def _compiles(cls, pattern: str) -> str:
        try:
            re.compile(pattern)
        except re.error as error:
            raise ValueError(f"{pattern!r} is not a regular expression: {error}") from error
        return pattern

    def score(self, sample: Sample) -> float:
        """Give 1 or 0."""
        matcher = re.fullmatch if self.full_match else re.search
        return float(matcher(self.pattern, sample.response, re.IGNORECASE if self.ignore_case else 0) is not None)
