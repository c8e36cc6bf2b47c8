"""What a pass keeps for its backward pass, from the shapes of a decoder's layers.

Counted from what transformers' Llama-like layers save for autograd: exact for the families that `tpg.policies`
decodes itself, near for others.
"""

from dataclasses import dataclass
from typing import Any

from torch import nn

LINEARS = 7
"""Matrices of a layer: query, key, value, output, gate, up, down."""
READS = 5
"""Of them those that read a normed state."""


@dataclass(frozen=True)
class Layer:
    """Widths of one of a decoder's layers, and how it computes; bytes are those of a number."""

    count: int
    """Layers of this shape."""
    hidden: int
    query: int
    """Heads x their size."""
    key: int
    """Key-value heads x their size."""
    intermediate: int
    heads: int
    kv_heads: int
    norms: int
    """On the hidden state."""
    normed_heads: bool
    """Whether queries and keys are normed too."""
    held: int
    """Bytes of a weight."""
    computed: int
    """Bytes of what products read and make."""
    rank: int = 0
    """Of adapters; 0: none, all weights are trained."""
    adapter: int = 4
    """Bytes of an adapter's weight."""

    @property
    def whole(self) -> float:
        """Bytes a token that every tensor-parallel device keeps: states, norms and what products read of them."""
        trained = 0 if self.rank else self.held
        kept = self.norms * (self.hidden * (4 + trained) + 4)
        if self._casts_for_adapters:
            return kept + READS * self.adapter * self.hidden
        mixed = self.computed < self.held
        return kept + (READS * self.computed if mixed else 2 * self.held) * self.hidden

    @property
    def shared(self) -> float:
        """Bytes a token that tensor-parallel devices divide: attention, the feed-forward part's middle, adapters."""
        kept = self.computed * 2 * (self.query + self.key) + 4 * self.heads + 4 * self.computed * self.intermediate
        if self.normed_heads:
            trained = 0 if self.rank else self.computed
            kept += (self.query + self.key) * (4 + trained) + 4 * (self.heads + self.kv_heads)
        if self._casts_for_adapters:
            return kept + self.adapter * (self.query + self.intermediate + LINEARS * self.rank)
        if self.rank:
            kept += LINEARS * self.rank * self.computed
            kept += self.computed * self.query if self.computed < self.held else 0
        return kept

    @property
    def _casts_for_adapters(self) -> bool:
        return self.rank > 0 and self.adapter > self.held == self.computed

    @property
    def kept_when_checkpointed(self) -> float:
        """Bytes a token of the state that a recomputation starts from."""
        return self.hidden * max(self.held, self.computed)

    def kv_bytes(self, width: int) -> float:
        """Keys and values of a token over all layers, in numbers of so many bytes."""
        return 2.0 * self.count * self.key * width


def layer_of(model: Any, held: int, computed: int) -> Layer:
    """The layers of a Hugging Face decoder, which may be wrapped in adapters."""
    config = model.config.get_text_config()
    hidden, heads = config.hidden_size, config.num_attention_heads
    size = getattr(config, "head_dim", None) or hidden // heads
    kv_heads = getattr(config, "num_key_value_heads", None) or heads
    norms = [name.split(".") for name, module in model.named_modules() if _is_norm(module)]
    names = [path[-1] for path in norms if any(part.isdigit() for part in path)]  # the last one is in no layer
    normed_heads = any(name in ("q_norm", "k_norm") for name in names)
    in_layers = sum(name not in ("q_norm", "k_norm") for name in names) // config.num_hidden_layers
    adapters = [p for name, p in model.named_parameters() if "lora_A" in name]
    return Layer(
        count=config.num_hidden_layers,
        hidden=hidden,
        query=heads * size,
        key=kv_heads * size,
        intermediate=getattr(config, "intermediate_size", None) or getattr(config, "n_inner", None) or 4 * hidden,
        heads=heads,
        kv_heads=kv_heads,
        norms=max(1, in_layers),
        normed_heads=normed_heads,
        held=held,
        computed=computed,
        rank=adapters[0].shape[0] if adapters else 0,
        adapter=adapters[0].element_size() if adapters else 4,
    )


def _is_norm(module: nn.Module) -> bool:
    return type(module).__name__.endswith("Norm")


def activations(layer: Layer, tokens: int, *, checkpointed: bool, tensor_parallel: int = 1) -> float:
    """Bytes that the layers keep for a backward pass over so many tokens, and what one layer's needs besides."""
    one = tokens * (layer.whole + layer.shared / tensor_parallel)
    if checkpointed:
        return layer.count * tokens * layer.kept_when_checkpointed + 2 * one
    return (layer.count + 1) * one
