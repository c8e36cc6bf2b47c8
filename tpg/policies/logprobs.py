"""A causal language model's log-probabilities of given responses."""

from typing import Any, Literal

import torch
from torch import Tensor

from tpg.numerics import TokenStatistics, token_statistics
from tpg.trajectories import Trajectories


def response_statistics(
    model: Any,
    trajectories: Trajectories,
    temperature: float,
    *,
    distribution: bool = False,
    layout: Literal["padded", "packed"] = "padded",
) -> TokenStatistics:
    """Statistics of every response token, each (B, T), zero outside `response_mask_BT`. Differentiable.

    Logits are made at the positions that predict a response token and nowhere else. `padded` runs a rectangle;
    `packed` runs all the trajectories end to end in one row without a padding token, which needs an attention
    implementation that tells sequences apart by their position ids.
    """
    mask_BT = trajectories.response_mask_BT
    tokens_N = trajectories.response_ids_BT[mask_BT]
    logits_NV = (_padded_logits if layout == "padded" else _packed_logits)(model, trajectories)
    statistics = token_statistics(logits_NV, tokens_N, temperature, distribution=distribution)

    def scattered(values_N: Tensor | None) -> Tensor | None:
        if values_N is None:
            return None
        return values_N.new_zeros(mask_BT.shape).masked_scatter(mask_BT, values_N)

    logprobs_BT = scattered(statistics.logprobs)
    assert logprobs_BT is not None
    return TokenStatistics(logprobs_BT, scattered(statistics.entropy), scattered(statistics.sum_squared_probs))


def _padded_logits(model: Any, trajectories: Trajectories) -> Tensor:
    ids = torch.cat([trajectories.prompt_ids_BP, trajectories.response_ids_BT], dim=-1)
    mask = torch.cat([trajectories.prompt_mask_BP, trajectories.response_mask_BT], dim=-1)
    positions = (mask.long().cumsum(-1) - 1).clamp(min=0)
    kept = trajectories.response_ids_BT.shape[1] + 1
    logits = model(
        input_ids=ids, attention_mask=mask.long(), position_ids=positions, logits_to_keep=kept, use_cache=False
    ).logits
    return logits[:, :-1][trajectories.response_mask_BT]


def _packed_logits(model: Any, trajectories: Trajectories) -> Tensor:
    ids_BS = torch.cat([trajectories.prompt_ids_BP, trajectories.response_ids_BT], dim=-1)
    mask_BS = torch.cat([trajectories.prompt_mask_BP, trajectories.response_mask_BT], dim=-1)
    positions_BS = mask_BS.long().cumsum(-1) - 1
    # A response token is predicted one column before its own; there is always a prompt token before the first.
    predicts_BS = torch.zeros_like(mask_BS)
    prompt = trajectories.prompt_ids_BP.shape[1]
    predicts_BS[:, prompt - 1 : -1] = trajectories.response_mask_BT
    logits = model(
        input_ids=ids_BS[mask_BS][None],
        position_ids=positions_BS[mask_BS][None],
        logits_to_keep=predicts_BS[mask_BS].nonzero()[:, 0],
        use_cache=False,
    ).logits
    return logits[0]
