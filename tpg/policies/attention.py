"""A causal language model's own layers, with the attention between tokens left to the caller.

Every layer of the families below hands its queries, keys and values to transformers' attention interface. Registering
one function there is enough to decode from a cache of our own, or to train on prompts that are computed once, without
a second implementation of any model.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

FAMILIES = frozenset({"llama", "qwen2", "qwen3", "mistral", "gemma", "gemma3_text", "smollm3"})
"""`model_type`s whose layers look at other tokens in attention only, and whose logits are the output layer's."""

NAME = "tpg"

Attention = Callable[[int, Tensor, Tensor, Tensor, float], Tensor]
"""(layer, query, key, value, scale) to the attended values, (batch, tokens, heads, D).

`query` is (batch, heads, tokens, D); keys and values have the key-value heads, each for heads / key-value heads
successive ones. Positions are already rotated in.
"""


def why_not(model: Any, tokens: int | None = None) -> str | None:
    """Why the attention of this model cannot be supplied for contexts of so many tokens; None if it can."""
    config = base_model(model).config
    if config.model_type not in FAMILIES:
        return f"{config.model_type} is none of the families {', '.join(sorted(FAMILIES))}"
    if config._attn_implementation not in ("sdpa", NAME):
        return f"policy.attention={config._attn_implementation} is not sdpa"
    if getattr(config, "final_logit_softcapping", None) or getattr(config, "use_bidirectional_attention", False):
        return "its logits are capped or its attention is bidirectional"
    window = _window(config)
    if window is not None and (tokens is None or tokens > window):
        return f"its layers attend to {window} tokens only"
    return None


class Decoder:
    """The layers of a model of a known family, without its output layer."""

    def __init__(self, model: Any) -> None:
        reason = why_not(model, 0)
        assert reason is None, reason
        base = base_model(model)
        base.config._attn_implementation = _registered()
        self.trunk: nn.Module = base.get_decoder()
        self.head: nn.Module = base.get_output_embeddings()

    def __call__(self, ids_BS: Tensor, positions_BS: Tensor, attention: Attention) -> Tensor:
        """The last hidden states, (B, S, H), which the output layer turns into logits."""
        # A mask of four dimensions is taken as it is: no other is made. Nobody reads it.
        unread = torch.zeros(1, 1, 1, 1, dtype=torch.bool, device=ids_BS.device)
        states: Tensor = self.trunk(
            input_ids=ids_BS,
            position_ids=positions_BS,
            attention_mask=unread,
            use_cache=False,
            given_attention=attention,
        ).last_hidden_state
        return states


def base_model(model: Any) -> Any:
    """The model itself, or the one that adapters are wrapped around; they sit within its layers."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def _window(config: Any) -> int | None:
    """The most tokens that every layer can look back; None without a limit."""
    kinds = getattr(config, "layer_types", None)
    if kinds is not None and "sliding_attention" not in kinds:
        return None
    return getattr(config, "sliding_window", None)


def _registered() -> str:
    """Make the function known to transformers, once; its name there."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.integrations.sdpa_attention import sdpa_attention_forward
    from transformers.masking_utils import sdpa_mask

    def attend(
        module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any, **options: Any
    ) -> tuple[Tensor, None]:
        given: Attention | None = options.pop("given_attention", None)
        if given is None:
            return sdpa_attention_forward(module, query, key, value, attention_mask, **options)
        return given(module.layer_idx, query, key, value, options["scaling"]), None

    if NAME not in AttentionInterface().valid_keys():
        AttentionInterface.register(NAME, attend)
        AttentionMaskInterface.register(NAME, sdpa_mask)
    return NAME
