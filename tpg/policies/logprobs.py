"""A causal language model's log-probabilities of given responses."""

import contextlib
from collections.abc import Iterator
from typing import Any, Literal

import torch
from torch import Tensor, nn

from tpg.numerics import TokenStatistics, token_statistics
from tpg.policies.attention import Decoder, why_not
from tpg.policies.flash import in_linear_memory
from tpg.policies.head import head_statistics
from tpg.policies.shared_prefix import layout_of
from tpg.trajectories import Trajectories

LayoutName = Literal["shared", "padded", "packed"]


def response_statistics(
    model: Any,
    trajectories: Trajectories,
    temperature: float,
    *,
    distribution: bool = False,
    hidden: bool = False,
    layout: LayoutName | None = None,
    decoder: Decoder | None = None,
) -> TokenStatistics:
    """Statistics of every response token, each (B, T), zero outside `response_mask_BT`. Differentiable.

    Logits are made at the positions that predict a response token and nowhere else. `shared` computes every distinct
    prompt once, no padding token, and never holds all logits; it needs a model of which `why_not` is None, whose
    `Decoder` may be given. `padded` runs a rectangle; `packed` runs all the trajectories end to end in one row without
    a padding token, which needs an attention implementation that tells sequences apart by their position ids. None
    takes `shared` where that can be, in memory linear in the length, and else `padded`. With `hidden` also the hidden
    states of the same pass, (B, T, H).
    """
    mask_BT = trajectories.response_mask_BT
    tokens_N = trajectories.response_ids_BT[mask_BT]
    if layout is None:
        held = next(model.parameters())
        shared = why_not(model, context(trajectories)) is None and in_linear_memory(held.device.type, held.dtype)
        layout = "shared" if shared else "padded"
    if layout == "shared":
        decoder = decoder or Decoder(model)
        row = layout_of(trajectories)
        states_SH = decoder(row.ids_S[None], row.positions_S[None], row.attention)[0]
        hidden_NH = states_SH.index_select(0, row.predicts_N)
        statistics = head_statistics(decoder.head, hidden_NH, tokens_N, temperature, distribution=distribution)
    else:
        with _inputs_of(model.get_output_embeddings() if hidden else None) as states:
            logits_NV = (_padded_logits if layout == "padded" else _packed_logits)(model, trajectories)
        statistics = token_statistics(logits_NV, tokens_N, temperature, distribution=distribution)
        if hidden:
            hidden_NH = states[0][:, :-1][mask_BT] if layout == "padded" else states[0][0]

    def scattered(values_N: Tensor | None) -> Tensor | None:
        if values_N is None:
            return None
        return values_N.new_zeros(mask_BT.shape).masked_scatter(mask_BT, values_N)

    logprobs_BT = scattered(statistics.logprobs)
    assert logprobs_BT is not None
    hidden_BTH = None
    if hidden:
        hidden_BTH = hidden_NH.new_zeros(*mask_BT.shape, hidden_NH.shape[-1])
        hidden_BTH = hidden_BTH.masked_scatter(mask_BT[..., None], hidden_NH)
    return TokenStatistics(
        logprobs_BT, scattered(statistics.entropy), scattered(statistics.sum_squared_probs), hidden_BTH
    )


def context(trajectories: Trajectories) -> int:
    """The most tokens that any of them has, prompt and response."""
    lengths_B = trajectories.prompt_mask_BP.sum(-1) + trajectories.lengths_B
    return int(lengths_B.max()) if len(lengths_B) else 0


def response_hidden_states(trunk: Any, trajectories: Trajectories) -> Tensor:
    """The last hidden state of a model without an output embedding at what predicts each response token, (B, T, H)."""
    first = trajectories.prompt_ids_BP.shape[1] - 1
    states: Tensor = trunk(**_rectangle(trajectories), use_cache=False).last_hidden_state
    return states[:, first:-1]


@contextlib.contextmanager
def _inputs_of(module: nn.Module | None) -> Iterator[list[Tensor]]:
    """What is given to a module while this is open, call after call."""
    given: list[Tensor] = []
    if module is None:
        yield given
        return
    handle = module.register_forward_pre_hook(lambda _, arguments: given.append(arguments[0]))
    try:
        yield given
    finally:
        handle.remove()


def _rectangle(trajectories: Trajectories) -> dict[str, Tensor]:
    ids = torch.cat([trajectories.prompt_ids_BP, trajectories.response_ids_BT], dim=-1)
    mask = torch.cat([trajectories.prompt_mask_BP, trajectories.response_mask_BT], dim=-1)
    positions = (mask.long().cumsum(-1) - 1).clamp(min=0)
    return {"input_ids": ids, "attention_mask": mask.long(), "position_ids": positions}


def _padded_logits(model: Any, trajectories: Trajectories) -> Tensor:
    kept = trajectories.response_ids_BT.shape[1] + 1
    logits = model(**_rectangle(trajectories), logits_to_keep=kept, use_cache=False).logits
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
