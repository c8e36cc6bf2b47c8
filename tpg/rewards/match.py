"""Rewards for saying the answer: word for word, or as the last number."""

import re
from decimal import Decimal

from pydantic import Field

from tpg.component import component
from tpg.rewards.base import AnswerTerm, Sample

# A minus after a digit, a letter or a closing bracket subtracts or joins ("12-13"); elsewhere it is a sign.
NUMBER = re.compile(r"(?:(?<![\w)\]])[-\u2212])?(?:(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|(?<!\d)\.\d+)")


def last_number(text: str) -> Decimal | None:
    """Read the last decimal number in a text, exactly; None where there is none.

    Thousands separators are understood ("1,234.5"), a full stop behind the number is not part of it; fractions and
    exponents are not read as one number.
    """
    numbers = NUMBER.findall(text)
    return Decimal(numbers[-1].replace(",", "").replace("\u2212", "-")) if numbers else None


@component
class ExactAnswer(AnswerTerm):
    """1 where the response equals the answer, white space around either left out; else 0."""

    ignore_case: bool = False

    def compare(self, sample: Sample, answer: str) -> float:
        """Give 1 or 0."""
        response, answer = sample.response.strip(), answer.strip()
        if self.ignore_case:
            response, answer = response.casefold(), answer.casefold()
        return float(response == answer)


@component
class LastNumber(AnswerTerm):
    """1 where the last number in the response is within `tolerance` (absolute) of the last one in the answer; else 0.

    With `require_finished` a truncated response gets 0: its last number may be half of one.
    """

    tolerance: float = Field(default=0.0, ge=0)
    require_finished: bool = False

    def compare(self, sample: Sample, answer: str) -> float:
        """Give 1 or 0. Raises `ValueError` when the answer holds no number."""
        wanted = last_number(answer)
        if wanted is None:
            raise ValueError(f"the answer {answer!r} holds no number")
        found = last_number(sample.response)
        if found is None or (sample.truncated and self.require_finished):
            return 0.0
        return float(abs(found - wanted) <= self.tolerance)
