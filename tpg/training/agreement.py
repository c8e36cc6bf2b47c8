"""How far a reward agrees with a verifier: who is ahead of whom, how sure it may be, and where it is fooled."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations, groupby
from statistics import median

from tpg.training.best_of_n import Answered


@dataclass(frozen=True)
class Bin:
    """Responses that the reward says are right with about the same probability."""

    responses: int
    confidence: float
    """Mean of that probability."""
    share: float
    """Of them, how many are right."""


@dataclass(frozen=True)
class Agreement:
    """What is known of a reward from responses that a verifier has judged."""

    responses: int
    """Those that both have scored."""
    right: int
    pairs: int
    """Two responses to one prompt of which one is truly better."""
    ordered: float | None
    """The share of pairs that the reward puts in the true order, a tie counting half; None without pairs."""
    auc: float | None
    """The probability that it puts a right response before a wrong one, over all prompts; None without both."""
    fitted: bool
    """Whether probabilities come from a logistic fit to these responses: the reward is not always within [0, 1]."""
    bins: tuple[Bin, ...]
    calibration_error: float | None
    """None where probabilities would have to be fitted to one class."""
    threshold: float
    """The median reward of right responses, or where there is none of all."""
    fooled: tuple[int, ...]
    """The wrong responses whose reward reaches the threshold, or where none is right exceeds it: their places in what
    was given, the greatest reward first."""


def agreement(prompts: Sequence[Sequence[Answered]], success: float, bins: int = 10) -> Agreement:
    """Compare rewards with truths, of which one of `success` or more is right.

    What is unscored counts for nothing, places aside. Raises `ValueError` when nothing is left.
    """
    flat = [(place, each) for place, each in enumerate(each for responses in prompts for each in responses)]
    scored = [(place, each) for place, each in flat if not (math.isnan(each.reward) or math.isnan(each.truth))]
    if not scored:
        raise ValueError("no response has both a reward and a truth")
    rewards = [each.reward for _, each in scored]
    right = [each.truth >= success for _, each in scored]
    pairs = [pair for responses in prompts for pair in _pairs(responses)]
    fitted = not all(0 <= reward <= 1 for reward in rewards)
    both = any(right) and not all(right)
    probabilities = logistic_fit(rewards, right) if fitted and both else rewards
    found = reliability(probabilities, right, bins) if both or not fitted else []
    threshold = median([reward for reward, is_right in zip(rewards, right, strict=True) if is_right] or rewards)
    fooled = [
        (-each.reward, place)
        for (place, each), is_right in zip(scored, right, strict=True)
        if not is_right and (each.reward > threshold or (each.reward == threshold and any(right)))
    ]
    return Agreement(
        responses=len(scored),
        right=sum(right),
        pairs=len(pairs),
        ordered=sum(pairs) / len(pairs) if pairs else None,
        auc=auc(rewards, right),
        fitted=fitted,
        bins=tuple(found),
        calibration_error=calibration_error(found) if found else None,
        threshold=threshold,
        fooled=tuple(place for _, place in sorted(fooled)),
    )


def auc(scores: Sequence[float], right: Sequence[bool]) -> float | None:
    """The probability that a right response scores higher than a wrong one, ties half; None without one of each."""
    positives = sum(right)
    negatives = len(right) - positives
    if not positives or not negatives:
        return None
    wins, below = 0.0, 0
    for _, tied in groupby(sorted(zip(scores, right, strict=True)), lambda pair: pair[0]):
        classes = [is_right for _, is_right in tied]
        wrong = len(classes) - sum(classes)
        wins += sum(classes) * (below + wrong / 2)
        below += wrong
    return wins / (positives * negatives)


def reliability(probabilities: Sequence[float], right: Sequence[bool], bins: int) -> list[Bin]:
    """The responses by probability, in bins of equal width; empty ones are left out."""
    members: dict[int, list[tuple[float, bool]]] = {}
    for probability, is_right in zip(probabilities, right, strict=True):
        members.setdefault(min(int(probability * bins), bins - 1), []).append((probability, is_right))
    return [
        Bin(len(each), sum(p for p, _ in each) / len(each), sum(is_right for _, is_right in each) / len(each))
        for _, each in sorted(members.items())
    ]


def calibration_error(bins: Sequence[Bin]) -> float:
    """The expected calibration error: the mean over responses of |confidence - share right| in their bin.

    (arXiv 1706.04599.)
    """
    total = sum(each.responses for each in bins)
    return sum(each.responses * abs(each.confidence - each.share) for each in bins) / total


def logistic_fit(scores: Sequence[float], right: Sequence[bool], steps: int = 100) -> list[float]:
    """The probability that each is right, by maximum likelihood of `sigmoid(a score + b)`.

    The classes are shrunk as by Platt (1999), to (N+ + 1) / (N+ + 2) and 1 / (N- + 2), which keeps a finite where no
    score of the wrong ones is above the right ones'. Newton's method on standardised scores, its steps halved until
    the likelihood rises.
    """
    mean = sum(scores) / len(scores)
    spread = math.sqrt(sum((score - mean) ** 2 for score in scores) / len(scores)) or 1.0
    x = [(score - mean) / spread for score in scores]
    positives = sum(right)
    high, low = (positives + 1) / (positives + 2), 1 / (len(right) - positives + 2)
    targets = [high if is_right else low for is_right in right]
    a, b = 0.0, 0.0
    loss = _loss(x, targets, a, b)
    for _ in range(steps):
        p = [_sigmoid(a * each + b) for each in x]
        residuals = [probability - target for probability, target in zip(p, targets, strict=True)]
        slopes = [probability * (1 - probability) for probability in p]
        g_a, g_b = sum(r * each for r, each in zip(residuals, x, strict=True)), sum(residuals)
        h_aa = sum(s * each * each for s, each in zip(slopes, x, strict=True)) + 1e-12
        h_ab, h_bb = sum(s * each for s, each in zip(slopes, x, strict=True)), sum(slopes) + 1e-12
        determinant = h_aa * h_bb - h_ab * h_ab
        if determinant <= 0:
            break
        d_a, d_b = (h_bb * g_a - h_ab * g_b) / determinant, (h_aa * g_b - h_ab * g_a) / determinant
        step = 1.0
        while step > 1e-6 and (new := _loss(x, targets, a - step * d_a, b - step * d_b)) > loss:
            step /= 2
        if step <= 1e-6 or loss - new < 1e-12:
            break
        a, b, loss = a - step * d_a, b - step * d_b, new
    return [_sigmoid(a * each + b) for each in x]


def _pairs(responses: Sequence[Answered]) -> list[float]:
    """Of each two of which one is truly better: 1 where the reward says so too, 1/2 where it sees no difference."""
    scored = [each for each in responses if not (math.isnan(each.reward) or math.isnan(each.truth))]
    found = []
    for one, other in combinations(scored, 2):
        if one.truth != other.truth:
            better, worse = (one, other) if one.truth > other.truth else (other, one)
            found.append(1.0 if better.reward > worse.reward else 0.5 if better.reward == worse.reward else 0.0)
    return found


def _loss(x: Sequence[float], targets: Sequence[float], a: float, b: float) -> float:
    """The negative log-likelihood: `log(1 + e^z) - target z`."""
    logits = [a * each + b for each in x]
    return sum(max(z, 0.0) + math.log1p(math.exp(-abs(z))) - t * z for z, t in zip(logits, targets, strict=True))


def _sigmoid(z: float) -> float:
    return 1 / (1 + math.exp(-z)) if z >= 0 else math.exp(z) / (1 + math.exp(z))
