"""Rewards that hold a response against the others to its prompt.

What they are computed from is one prompt's scored responses and nothing else, so that neither the other prompts of an
iteration nor the processes that share it change a reward.
"""

import math
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import ClassVar

from pydantic import Field

from tpg.component import component
from tpg.rewards.base import Sample
from tpg.rewards.combination import Combination, Values, in_groups, sums, weighted


@component
class GDPO(Combination):
    """`sum of weight x (value - group mean) / (group std + epsilon)`: each term in its own units. (arXiv 2601.05242.)

    The standard deviation is the sample's (n-1). A term that does not vary in a group adds 0 there, as all do to a
    response that is alone. The paper then whitens the sum over the batch, which estimator=reinforce_pp does.
    """

    min_group: ClassVar[int] = 2

    epsilon: float = Field(default=1e-4, ge=0)

    def parts(self, values: Values, weights: Mapping[str, float], samples: Sequence[Sample]) -> Values:
        """Give each term's normalised values, weighted; a gate's zeros are values among the others."""
        counted = self.counted(values, weights)
        groups = in_groups(samples, sums(counted))
        normalised = {}
        for name, column in counted.items():
            normalised[name] = [math.nan] * len(column)
            for places in groups:
                scores = standard_scores([column[place] for place in places], self.epsilon)
                for place, score in zip(places, scores, strict=True):
                    normalised[name][place] = score
        return weighted(normalised, weights)

    def combined(self, parts: Values, samples: Sequence[Sample]) -> list[float]:
        """Add them up."""
        return sums(parts)


@component
class Rank(Combination):
    """Where a response's weighted sum stands among those to its prompt: 1 the best, -1 the worst, in equal steps.

    Responses of equal sums share the mean of their places, so that a group of equals is all 0, as is a response that
    is alone. How far apart sums are, and outliers among them, makes no difference.
    """

    min_group: ClassVar[int] = 2

    def combined(self, parts: Values, samples: Sequence[Sample]) -> list[float]:
        """Rank the sums; the mean of a group's rewards is 0."""
        rewards = sums(parts)
        for places in in_groups(samples, rewards):
            for place, rank in zip(places, ranks([rewards[place] for place in places]), strict=True):
                rewards[place] = rank
        return rewards


@component
class LengthControlled(Combination):
    """The weighted sum less what a least-squares line on the response's length explains of it, prompt by prompt.

    That is `slope x (tokens - mean tokens)`, so that a group keeps its mean. Where its scored responses have fewer than
    three different lengths, a line would pass through the mean of each length and call all that sets them apart an
    effect of length; such a group stays as it is. A line takes one of a group's degrees of freedom: prefer 8 responses
    or more.
    """

    min_group: ClassVar[int] = 3

    def combined(self, parts: Values, samples: Sequence[Sample]) -> list[float]:
        """Take off what length explains."""
        rewards = sums(parts)
        for places in in_groups(samples, rewards):
            lengths = [len(samples[place].token_ids) for place in places]
            left = without_line(lengths, [rewards[place] for place in places])
            for place, reward in zip(places, left, strict=True):
                rewards[place] = reward
        return rewards


def standard_scores(values: Sequence[float], epsilon: float) -> list[float]:
    """`(value - mean) / (sample standard deviation + epsilon)`; exactly 0 where all are equal."""
    if max(values) == min(values):
        return [0.0] * len(values)
    mean = fmean(values)
    deviation = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1))
    return [(value - mean) / (deviation + epsilon) for value in values]


def ranks(values: Sequence[float]) -> list[float]:
    """Each value's place among them, from -1 to 1: the share of the others that are below, less that above."""
    others = max(1, len(values) - 1)
    return [(sum(each < value for each in values) - sum(each > value for each in values)) / others for value in values]


def without_line(lengths: Sequence[int], rewards: Sequence[float]) -> list[float]:
    """Rewards less what their least-squares line on length adds to or takes from the mean."""
    if len(set(lengths)) < 3:
        return list(rewards)
    middle, mean = fmean(lengths), fmean(rewards)
    spread = math.fsum((length - middle) ** 2 for length in lengths)
    together = math.fsum((length - middle) * (reward - mean) for length, reward in zip(lengths, rewards, strict=True))
    slope = together / spread
    return [reward - slope * (length - middle) for length, reward in zip(lengths, rewards, strict=True)]
