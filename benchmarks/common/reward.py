"""The reward of the benchmark: cheap, a function of the tokens, and different from response to response."""

from collections.abc import Sequence


def token_reward(token_ids: Sequence[int]) -> float:
    """In [0, 1): a polynomial hash of the tokens, so that hardly two responses have the same and no weight is zero."""
    total = 0
    for token in token_ids:
        total = (total * 31 + int(token) + 1) % 99991
    return total / 99991
