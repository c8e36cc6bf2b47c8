"""From the moments of a method's gradient estimate on several worlds to a judgement."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from tpg.audit.exact import Moments

EXACT = 1e-9
"""Relative bias below which an enumerated estimate is called exact: far above rounding, far below any real bias."""
SAME_DIRECTION = 1e-12
"""The same for 1 - cosine, which is of second order in the angle."""
CONFIDENCE = 3.0
"""Standard errors that sampling is granted: 95 % over twenty worlds even where the estimate has but one direction."""
MOST_NOISE = 1e9
"""What noise to signal reads where there is no signal."""


@dataclass(frozen=True)
class Judgement:
    """Medians over worlds, the worst world where it decides, and what it comes to in words."""

    relative_bias: float
    """`|E g - true| / |true|`."""
    scale: float
    """`<E g, true> / |true|^2`."""
    cosine: float
    trace_covariance: float
    generated_tokens: float
    noise_per_token: float
    """Trace of covariance times generated tokens over `|E g|^2`: noise to signal at equal cost of generation."""
    noise_per_update: float
    """The same with the responses that are updated on: at equal cost of training."""
    enumerated: bool
    margin: float
    """What sampling leaves open about the relative bias; 0 where everything was enumerated."""
    exact: bool
    exact_direction: bool
    verdict: str

    def because(self, causes: Sequence[str], *, explained: bool) -> "Judgement":
        """With the causes in the verdict, and whether they are all."""
        if not causes:
            return replace(self, verdict=f"{self.verdict}; no cause found")
        rest = "" if explained else ", and of more that was not found"
        return replace(self, verdict=f"{self.verdict}, because of {_listed(causes)}{rest}")

    @property
    def misdirection(self) -> float:
        """The sine of the angle to the true gradient, squared; from 1 to 2 where it points backwards."""
        return max(0.0, 1.0 - self.cosine**2) if self.cosine > 0 else 1.0 + self.cosine**2


def judged(found: Sequence[Moments]) -> Judgement:
    """Moments of the same method on several worlds."""
    bias, scale, cosine, noise, margins = [], [], [], [], []
    for moments in found:
        true, mean = moments.true, moments.mean
        size = float(true.norm())
        assert size > 0, "a world without a gradient says nothing"
        bias.append(float((mean - true).norm()) / size)
        scale.append(float(mean @ true) / size**2)
        cosine.append(float(torch.cosine_similarity(mean, true, dim=0)))
        signal = float(mean.square().sum())
        noise.append(min(MOST_NOISE, moments.trace / signal) if signal else MOST_NOISE)
        margins.append(CONFIDENCE * moments.error / size)
    enumerated = all(moments.enumerated for moments in found)
    margin = max(margins)
    unbiased = [b < (m or EXACT) for b, m in zip(bias, margins, strict=True)]
    straight = [
        s > m and max(0.0, b**2 - (1 - s) ** 2) ** 0.5 < m if m else 1 - c < SAME_DIRECTION
        for b, s, c, m in zip(bias, scale, cosine, margins, strict=True)
    ]
    exact, exact_direction = all(unbiased), all(unbiased) or all(straight)
    return Judgement(
        relative_bias=statistics.median(bias),
        scale=statistics.median(scale),
        cosine=statistics.median(cosine),
        trace_covariance=statistics.median(moments.trace for moments in found),
        generated_tokens=statistics.median(moments.tokens for moments in found),
        noise_per_token=statistics.median(n * m.tokens for n, m in zip(noise, found, strict=True)),
        noise_per_update=statistics.median(n * m.responses for n, m in zip(noise, found, strict=True)),
        enumerated=enumerated,
        margin=margin,
        exact=exact,
        exact_direction=exact_direction,
        verdict=_words(bias, scale, cosine, unbiased, exact_direction, margins),
    )


def _words(
    bias: list[float],
    scale: list[float],
    cosine: list[float],
    unbiased: list[bool],
    exact_direction: bool,
    margins: list[float],
) -> str:
    margin = max(margins)
    if all(unbiased):
        # The mean that was found may itself be off by the margin.
        below = max(b + m for b, m in zip(bias, margins, strict=True))
        return f"no bias found, it is below {below:.3f}" if margin else "exact"
    # What is left of the true gradient is 1 - scale, and the bias nothing but that.
    if max(abs(s) for s in scale) < (margin or EXACT) and max(abs(b - 1) for b in bias) < (margin or EXACT):
        return f"no gradient at all, within {margin:.3f}" if margin else "no gradient at all"
    if exact_direction:
        factors = f"{min(scale):.3f}"
        if max(scale) - min(scale) > 1e-6 + margin:
            factors += f" to {max(scale):.3f}"
        found = f"direction exact within {margin:.3f}" if margin else "exact direction"
        return f"{found}, scale {factors}"
    sampled = f" (sampled, +-{margin:.3f})" if margin else ""
    if any(unbiased):
        share = f"{unbiased.count(False)} of {len(unbiased)} worlds"
        return f"biased in {share}: cos down to {_cosine(min(cosine))}{sampled}"
    return f"biased: cos {_cosine(statistics.median(cosine))}{sampled}"


def _cosine(value: float) -> str:
    """Three digits, or as many as tell it from 1."""
    return f"{value:.3f}" if value < 0.9995 else f"1 - {1 - value:.0e}"


def _listed(names: Sequence[str]) -> str:
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)
