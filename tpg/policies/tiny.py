"""A Llama of about a million parameters, made on the spot."""

from typing import Any

import torch
from pydantic import Field, ValidationInfo, field_validator

from tpg.component import component
from tpg.policies.base import PolicyOptions

CHARACTERS = "\n" + "".join(chr(code) for code in range(32, 127))


@component
class Tiny(PolicyOptions):
    """A small Llama with random weights (a function of the seed) and one token for each printable ASCII character."""

    hidden_size: int = Field(default=128, ge=8)
    layers: int = Field(default=4, ge=1)
    heads: int = Field(default=4, ge=1)
    max_positions: int = Field(default=512, ge=8)

    @field_validator("heads")
    @classmethod
    def _share_the_hidden_size(cls, heads: int, info: ValidationInfo) -> int:
        hidden_size = info.data.get("hidden_size", heads)
        if hidden_size % (2 * heads):
            raise ValueError(f"hidden_size={hidden_size} must be a multiple of twice the heads")
        return heads

    def load_model_and_tokenizer(self, seed: int) -> tuple[Any, Any]:
        """Make both."""
        from transformers import LlamaConfig, LlamaForCausalLM

        tokenizer = character_tokenizer()
        config = LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=self.hidden_size,
            intermediate_size=3 * self.hidden_size,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            num_key_value_heads=self.heads,
            max_position_embeddings=self.max_positions,
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
        config._attn_implementation = self.attention
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return LlamaForCausalLM(config).to(getattr(torch, self.dtype)), tokenizer


def character_tokenizer() -> Any:
    """A tokenizer with one token a character; other characters become `<unk>`."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {token: i for i, token in enumerate(["<pad>", "<eos>", "<unk>", *CHARACTERS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>", padding_side="left"
    )
