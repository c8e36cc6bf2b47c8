"""What a misspelled name was probably meant to be."""

import difflib
from collections.abc import Iterable


def did_you_mean(given: str, allowed: Iterable[str]) -> str:
    """Offer the nearest names, as the end of an error message; empty when none is near."""
    near = difflib.get_close_matches(given, list(allowed))
    return f"; did you mean {' or '.join(near)}?" if near else ""
