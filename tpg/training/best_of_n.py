"""What the best of n responses is worth when a reward model chooses, from all subsets of those there are."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby


@dataclass(frozen=True)
class Answered:
    """One response: the reward that chooses, and what it is truly worth; NaN where unscored."""

    reward: float
    truth: float = math.nan


@dataclass(frozen=True)
class Point:
    """The best of `n`: means over prompts with their standard errors."""

    n: int
    kl: float
    """Of the distribution of the best response from the policy's own, in nats."""
    reward: float
    reward_error: float
    truth: float
    """NaN without a truth."""
    truth_error: float


def expected_best(rewards: Sequence[float], values: Sequence[float], n: int) -> float:
    """The mean, over all subsets of n, of the value of the response with the greatest reward in the subset.

    Unbiased for the best of n new responses. Among equal rewards each is chosen as often as any other.
    """
    if not 1 <= n <= len(rewards) == len(values):
        raise ValueError(f"no subsets of {n} among {len(rewards)} rewards and {len(values)} values")
    total = math.comb(len(rewards), n)
    expected, below = 0.0, 0
    for _, tied in groupby(sorted(zip(rewards, values, strict=True), key=lambda pair: pair[0]), lambda pair: pair[0]):
        worth = [value for _, value in tied]
        subsets = math.comb(below + len(worth), n) - math.comb(below, n)
        expected += subsets / total * (sum(worth) / len(worth))
        below += len(worth)
    return expected


def kl_of_best(n: int) -> float:
    """`log n - (n - 1) / n` nats, exact where no two responses have one reward and else more than there is.

    (arXiv 2112.09332; that it bounds: 2401.01879.)
    """
    return math.log(n) - (n - 1) / n


def sizes(n: int) -> list[int]:
    """1, 2, 4, ... and n."""
    return sorted({2**power for power in range(n.bit_length()) if 2**power <= n} | {n})


def complete(prompts: Sequence[Sequence[Answered]], n: int, with_truth: bool) -> list[list[Answered]]:
    """The scored responses of the prompts that have n of them."""
    scored = [
        [each for each in responses if not (math.isnan(each.reward) or (with_truth and math.isnan(each.truth)))]
        for responses in prompts
    ]
    return [responses for responses in scored if len(responses) >= n]


def curve(prompts: Sequence[Sequence[Answered]], n: int) -> list[Point]:
    """The best of 1, 2, 4, ..., n; every prompt has n scored responses or more. A truth is everybody's or nobody's."""
    points = []
    for size in sizes(n):
        worth: list[tuple[float, float]] = []
        for responses in prompts:
            rewards, truths = [each.reward for each in responses], [each.truth for each in responses]
            worth.append((expected_best(rewards, rewards, size), expected_best(rewards, truths, size)))
        reward, truth = (_mean_and_error([pair[place] for pair in worth]) for place in (0, 1))
        points.append(Point(size, kl_of_best(size), *reward, *truth))
    return points


def _mean_and_error(values: Sequence[float]) -> tuple[float, float]:
    """The mean and its standard error; NaN of a single value."""
    mean = sum(values) / len(values)
    if len(values) == 1:
        return mean, math.nan
    variance = sum((value - mean) ** 2 for value in values) / (len(values) - 1)
    return mean, math.sqrt(variance / len(values))
