"""Noise and direction of gradient estimates from independent batches, with what the number of batches leaves open."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

RESAMPLES = 400
ALIKE = 0.999
"""A cosine or scale is called less than 1 when its whole interval is less than this."""


@dataclass(frozen=True, eq=False)
class Measured:
    """Gradient estimates of B batches, D numbers each, and the unbiased ones of the same and of more batches, N."""

    own_BD: Tensor
    unbiased_ND: Tensor
    tokens: float
    """Generated for a batch, greedy responses and continuations included."""
    responses: int
    """Of a batch that the update is made of."""


@dataclass(frozen=True)
class Statistics:
    """Of one batch's gradient, each a vector over resamples of the batches, the first of them the batches as drawn."""

    mean_square: Tensor
    """Squared length of the mean gradient, the noise taken out; may come out negative where there is no signal."""
    trace: Tensor
    """Of the covariance."""
    scale: Tensor
    """Length of the mean along the true gradient, over the true gradient's length."""
    cosine: Tensor


def statistics(measured: Measured, counts_SN: Tensor) -> Statistics:
    """How often each batch counts is `counts_SN`, in the first row once. Products of a batch with itself never do."""
    own_BD, unbiased_ND = measured.own_BD.double(), measured.unbiased_ND.double()
    batches = len(own_BD)
    own_SB = counts_SN[:, :batches]
    same_BD = unbiased_ND[:batches]

    def across(left_BD: Tensor, right_ND: Tensor, right_SN: Tensor) -> Tensor:
        """The mean of inner products over pairs of different batches."""
        others_BN = 1.0 - torch.eye(batches, len(right_ND), dtype=torch.float64)
        pairs_SBN = own_SB[:, :, None] * right_SN[:, None, :] * others_BN
        total = pairs_SBN.sum((1, 2))
        return (pairs_SBN * (left_BD @ right_ND.T)).sum((1, 2)) / total.clamp(min=1)

    mean_square = across(own_BD, own_BD, own_SB)
    squares = own_SB @ own_BD.square().sum(-1) / own_SB.sum(-1)
    scale = across(own_BD, unbiased_ND, counts_SN) / across(same_BD, unbiased_ND, counts_SN)
    cosine = scale * (across(same_BD, same_BD, own_SB) / mean_square).sqrt()
    return Statistics(mean_square, (squares - mean_square).clamp(min=0), scale, cosine.clamp(-1, 1))


def resampled(batches: int, references: int, seed: int) -> Tensor:
    """How often each batch counts in each resample, (1 + RESAMPLES, batches + references)."""
    generator = torch.Generator().manual_seed(seed)
    counts = [torch.ones(1, batches + references, dtype=torch.float64)]
    parts = []
    for size in filter(None, (batches, references)):
        drawn = torch.randint(size, (RESAMPLES, size), generator=generator)
        parts.append(torch.nn.functional.one_hot(drawn, size).sum(1).double())
    return torch.cat([*counts, torch.cat(parts, dim=1)])


def rows_of(measured: Mapping[str, Measured], names: Mapping[str, str], seed: int) -> list[dict[str, Any]]:
    """The table: a row an estimator. What the batches leave open is NaN."""
    first = next(iter(measured.values()))
    batches = len(first.own_BD)
    counts_SN = resampled(batches, len(first.unbiased_ND) - batches, seed)
    found = {name: statistics(each, counts_SN) for name, each in measured.items()}
    needed = {name: (each.trace / each.scale.square())[0] for name, each in found.items()}
    least = min((float(value) for value in needed.values() if value.isfinite() and value > 0), default=math.nan)
    rows = []
    for name, each in found.items():
        data = measured[name]
        signal = torch.where(each.mean_square > 0, each.mean_square, math.nan)
        noise = each.trace / signal
        values = {
            "cosine": each.cosine,
            "scale": each.scale,
            "trace_covariance": each.trace,
            "snr": each.mean_square.clamp(min=0) / each.trace.clamp(min=1e-300),
            "noise_per_token": noise * data.tokens,
            "noise_per_update": noise * data.responses,
        }
        row: dict[str, Any] = {
            "estimator": name,
            **names,
            "batches": batches,
            "responses": data.responses,
            "generated_tokens": data.tokens,
            "gradient_norm": float(data.own_BD.double().norm(dim=-1).mean()),
            **{key: float(values_S[0]) for key, values_S in values.items()},
            "responses_for_same_noise": float(needed[name]) / least,
        }
        for key, values_S in values.items():
            row[f"{key}_low"], row[f"{key}_high"] = _interval(values_S[1:])
        # What the batches cannot tell is in the table all the same, so that both kinds of audit read alike.
        rows.append({**row, "relative_bias": None, "verdict": _verdict(row), "causes": []})
    return rows


def _interval(values_S: Tensor) -> tuple[float, float]:
    """95 %, of the resamples that say anything."""
    said = values_S[values_S.isfinite()]
    if not len(said):
        return math.nan, math.nan
    low, high = torch.quantile(said, torch.tensor([0.025, 0.975], dtype=said.dtype)).tolist()
    return low, high


def _verdict(row: Mapping[str, Any]) -> str:
    times = row["responses_for_same_noise"]
    noise = "least noise" if times < 1.005 else f"{times:.2f} x the responses for the least noise"
    if not row["snr_low"] > 0:
        return f"the signal is not clear of the noise in {row['batches']} batches; give more"
    if row["cosine_high"] < ALIKE:
        return f"biased: cos {row['cosine']:.3f}; {noise}"
    scaled = row["scale_low"] > 2 - ALIKE or row["scale_high"] < ALIKE
    scale = f", scale {row['scale']:.3f}" if scaled else ""
    return f"no bias of direction found{scale}; {noise}"
