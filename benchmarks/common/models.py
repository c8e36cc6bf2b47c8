"""Models that both sides can read, by short names."""

import os
import random
import tempfile
from pathlib import Path
from typing import Any

from tpg.errors import UserError
from tpg.spelling import did_you_mean

CACHE = Path(__file__).parents[1] / ".models"

QWEN3 = {
    "tiny": {"hidden_size": 64, "intermediate_size": 128, "layers": 2, "heads": 4, "key_value_heads": 2, "vocab": 256},
    "0.1b": {"hidden_size": 512, "intermediate_size": 1536, "layers": 12, "heads": 8, "key_value_heads": 4},
    "0.6b": {"hidden_size": 1024, "intermediate_size": 3072, "layers": 28, "heads": 16, "key_value_heads": 8},
    "1.7b": {"hidden_size": 2048, "intermediate_size": 6144, "layers": 28, "heads": 16, "key_value_heads": 8},
}
"""0.6b and 1.7b have the published shapes (arXiv 2505.09388); all have random weights."""

NAMES = ["smollm2", "tiny", *(f"qwen3:{size}" for size in QWEN3)]


def model_folder(name: str) -> str:
    """The folder or hub id of a model, made at the first call where it has random weights."""
    if Path(name).expanduser().is_dir():
        return str(Path(name).expanduser().absolute())
    if name == "smollm2":
        from tpg.policies.smollm2 import SmolLM2
        from tpg.training.preparation import quiet_libraries

        quiet_libraries()
        return str(SmolLM2().load_model_and_tokenizer(0)[0].name_or_path)
    if name in NAMES:
        return str(_made(name))
    if name.count("/") == 1 and not name.startswith((".", "/", "~")):
        return name
    raise UserError(
        f"model={name}: no folder, no hub id (org/name), and not {', '.join(NAMES)}{did_you_mean(name, NAMES)}"
    )


def random_prompts(model: str, count: int, tokens: int, seed: int) -> tuple[tuple[int, ...], ...]:
    """Prompts of random tokens; the first tenth of the vocabulary is left out, where special tokens are."""
    from transformers import AutoTokenizer

    size = len(AutoTokenizer.from_pretrained(model))
    draw = random.Random(f"{seed}-{count}-{tokens}")
    return tuple(tuple(draw.randrange(size // 10, size) for _ in range(tokens)) for _ in range(count))


def _made(name: str) -> Path:
    folder = CACHE / name.replace(":", "-")
    if folder.is_dir():
        return folder
    model, tokenizer = _tiny() if name == "tiny" else _qwen3(**QWEN3[name.removeprefix("qwen3:")])
    CACHE.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=CACHE) as staging:
        model.save_pretrained(staging)
        tokenizer.save_pretrained(staging)
        try:
            os.rename(staging, folder)
            Path(staging).mkdir()  # for the context to remove
        except OSError:  # another process was first
            assert folder.is_dir()
    return folder


def _tiny() -> tuple[Any, Any]:
    from tpg.policies.tiny import Tiny

    return Tiny(hidden_size=64, layers=2, max_positions=2048).load_model_and_tokenizer(0)


def _qwen3(
    *, hidden_size: int, intermediate_size: int, layers: int, heads: int, key_value_heads: int, vocab: int = 151936
) -> tuple[Any, Any]:
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    from tpg.policies.tiny import character_tokenizer

    tokenizer = character_tokenizer()
    config = Qwen3Config(
        vocab_size=vocab,
        hidden_size=hidden_size,
        intermediate_size=intermediate_size,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=key_value_heads,
        head_dim=128 if hidden_size >= 1024 else hidden_size // heads,
        max_position_embeddings=4096,
        tie_word_embeddings=True,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model: Any = Qwen3ForCausalLM(config)
    return model.to(torch.bfloat16), tokenizer
