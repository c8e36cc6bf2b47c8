"""Folders that hold small reward models with real weights, as `save_pretrained` writes them."""

from pathlib import Path

import torch
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2ForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    LlamaForTokenClassification,
    RobertaConfig,
    RobertaForSequenceClassification,
)

from tpg.policies.tiny import character_tokenizer

CHAT = (
    "{% for message in messages %}<{{ message['role'] }}>{{ message['content'] | trim }}|{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
"""A turn ends with `|`; a message's blanks at either end are cut off."""
SIZES = {
    "vocab_size": 99,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 128,
}
KINDS = {
    "llama": (LlamaConfig, LlamaForSequenceClassification, SIZES | {"pad_token_id": 0}),
    "llama, padded with its end": (LlamaConfig, LlamaForSequenceClassification, SIZES | {"pad_token_id": 1}),
    "llama without padding": (LlamaConfig, LlamaForSequenceClassification, SIZES | {"pad_token_id": None}),
    "gpt2": (
        GPT2Config,
        GPT2ForSequenceClassification,
        {"vocab_size": 99, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 128, "pad_token_id": 0},
    ),
    "bert": (BertConfig, BertForSequenceClassification, SIZES | {"pad_token_id": 0}),
    "roberta": (RobertaConfig, RobertaForSequenceClassification, SIZES | {"pad_token_id": 0}),
    "token": (LlamaConfig, LlamaForTokenClassification, SIZES | {"pad_token_id": 0}),
    "causal": (LlamaConfig, LlamaForCausalLM, SIZES | {"pad_token_id": 0}),
}


def small_model(kind="llama", seed=0, **options):
    """A model of so large weights that its values are far from one another."""
    config, made, sizes = KINDS[kind]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        given = {"num_labels": 1, "bos_token_id": None, "eos_token_id": 1}
        model = made(config(**(sizes | given | options)))
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.4)
    return model.eval()


def tokenizer(template=None, **options):
    """One token a character."""
    found = character_tokenizer()
    found.chat_template = template
    for name, value in options.items():
        setattr(found, name, value)
    return found


def saved(folder: Path, model, tokens=None):
    """The folder's name, once both are in it."""
    model.save_pretrained(folder)
    (tokens or tokenizer()).save_pretrained(folder)
    return str(folder)
