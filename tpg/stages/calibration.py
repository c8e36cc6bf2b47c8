"""How well differences of rewards tell which response was preferred."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid


def bradley_terry(chosen_B: Tensor, rejected_B: Tensor, margins_B: Tensor, centering: float) -> Tensor:
    """The loss of each pair, (B,): `-log sigmoid(r_c - r_r - margin) + centering (r_c + r_r)^2`.

    (Bradley and Terry 1952; margin: arXiv 2307.09288; centring: arXiv 2312.09244.)
    """
    if not chosen_B.shape == rejected_B.shape == margins_B.shape or chosen_B.ndim != 1:
        raise ValueError("rewards and margins must be vectors of one length")
    centred = centering * (chosen_B + rejected_B).square() if centering else 0.0
    return -logsigmoid(chosen_B - rejected_B - margins_B) + centred


@dataclass(frozen=True)
class Bin:
    """Pairs whose preferred response is told with about the same confidence."""

    pairs: int
    confidence: float
    """Mean over the pairs of sigmoid(|r_c - r_r|): what the rewards say that the probability is."""
    accuracy: float
    """The share of pairs in which the response with the greater reward was the chosen one; a tie counts half."""


def accuracy(differences_B: Tensor) -> float:
    """The share of `r_c - r_r` above 0; a tie counts half."""
    return float(_right(differences_B).mean())


def reliability(differences_B: Tensor, bins: int) -> list[Bin]:
    """The pairs by confidence, in bins of equal width from 1/2 to 1; empty ones are left out.

    A pair may be shown in either order, so that sigmoid(r_c - r_r) says the same as sigmoid(r_r - r_c).
    """
    confidence_B = torch.sigmoid(differences_B.double().abs())
    place_B = ((confidence_B - 0.5) * 2 * bins).long().clamp(max=bins - 1)
    found = []
    for place in range(bins):
        members_B = place_B == place
        if members_B.any():
            right = float(_right(differences_B[members_B]).mean())
            found.append(Bin(int(members_B.sum()), float(confidence_B[members_B].mean()), right))
    return found


def calibration_error(found: list[Bin]) -> float:
    """The expected calibration error: the mean over pairs of |confidence - accuracy| of their bin.

    (arXiv 1706.04599.)
    """
    pairs = sum(each.pairs for each in found)
    return sum(each.pairs * abs(each.confidence - each.accuracy) for each in found) / pairs


def _right(differences_B: Tensor) -> Tensor:
    return (differences_B > 0).double() + 0.5 * (differences_B == 0).double()
