"""Why a request came to nothing, and whether to make it again."""

import math
import time
from contextlib import suppress
from email.utils import parsedate_to_datetime

from tpg.rewards.base import Failure, Reason

MAY_PASS = {408, 409, 425, 429}
"""Statuses that a later request may not meet again, beside the 500s."""


class Unjudged(Exception):  # noqa: N818
    """One request came to nothing; it may be worth another after `wait_s` seconds (None: as the options say)."""

    def __init__(self, reason: Reason, cause: str, again: bool = True, wait_s: float | None = None) -> None:
        self.failure = Failure(reason, cause)
        self.again = again
        self.wait_s = wait_s


def refusal(status: int, told: str, retry_after: str | None, max_wait_s: float) -> Unjudged:
    """What an answer with another status than 200 comes to."""
    cause = f"status {status}: {told}"
    reason: Reason = "rate limited" if status == 429 else "server error" if status >= 500 else "refused"
    wait = seconds_of(retry_after)
    if wait is not None and wait > max_wait_s:
        asks = f"asked to wait {wait:.0f} s, more than max_wait_s={max_wait_s:g}"
        return Unjudged(reason, f"{asks}; {cause}", again=False)
    return Unjudged(reason, cause, again=status in MAY_PASS or status >= 500, wait_s=wait)


def seconds_of(retry_after: str | None) -> float | None:
    """What a header Retry-After asks to wait: seconds, or a date; None for none and for what is neither."""
    if retry_after is None:
        return None
    with suppress(ValueError):
        seconds = float(retry_after)
        return max(seconds, 0.0) if math.isfinite(seconds) else None
    with suppress(ValueError, OverflowError):
        return max(parsedate_to_datetime(retry_after).timestamp() - time.time(), 0.0)
    return None
