"""Policies of published shapes without their files, and the memory table of docs/cluster.md.

`python tests/planning/published.py` prints the table.
"""

import sys
from dataclasses import replace
from typing import Any

from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from tpg.component import component
from tpg.composition import to_experiment
from tpg.jobs.configs import BOOKKEEPING, CONF
from tpg.planning.layout import Layout
from tpg.planning.memory import memory_of
from tpg.planning.options import Plan
from tpg.planning.outline import outline_of
from tpg.planning.setting import Setting
from tpg.policies.base import LoRA, PolicyOptions

SHAPES = {
    "SmolLM2-135M": ("LlamaConfig", 49152, 576, 1536, 30, 9, 3, 64, True),
    "Qwen3-0.6B": ("Qwen3Config", 151936, 1024, 3072, 28, 16, 8, 128, True),
    "Qwen3-1.7B": ("Qwen3Config", 151936, 2048, 6144, 28, 16, 8, 128, True),
    "Qwen3-4B": ("Qwen3Config", 151936, 2560, 9728, 36, 32, 8, 128, True),
    "Qwen3-8B": ("Qwen3Config", 151936, 4096, 12288, 36, 32, 8, 128, False),
}
"""Class, vocabulary, hidden, intermediate, layers, heads, key-value heads, head size, whether embeddings are tied."""
LAYOUTS = {
    "1 GPU": Layout(),
    "8, ddp": Layout(8),
    "8, fsdp": Layout(8, 1, sharded=True),
    "8, tensor_parallel": Layout(1, 8),
    "8, fsdp_tp 4 x 2": Layout(4, 2, sharded=True),
}
METHODS = {
    "rloo": [],
    "rloo, LoRA 16": [],
    "grpo with a reference": ["algorithm=grpo"],
    "ppo with a critic model": ["algorithm=ppo", "critic=separate"],
}


@component
class Published(PolicyOptions):
    """A model of a published shape."""

    name: str

    def outlined_model(self) -> Any:
        import transformers

        kind, vocabulary, hidden, intermediate, layers, heads, kv_heads, size, tied = SHAPES[self.name]
        config = getattr(transformers, kind)(
            vocab_size=vocabulary,
            hidden_size=hidden,
            intermediate_size=intermediate,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            num_key_value_heads=kv_heads,
            head_dim=size,
            tie_word_embeddings=tied,
        )
        return transformers.AutoModelForCausalLM.from_config(config, attn_implementation=self.attention)

    def load_model_and_tokenizer(self, seed: int) -> Any:
        raise AssertionError("weights are loaded")


def experiment(*overrides):
    with initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
        config = compose("train", overrides=list(overrides))
    return to_experiment(OmegaConf.masked_copy(config, [key for key in config if key not in BOOKKEEPING]))


def setting(made, layout=Layout(), *, device="cuda", precision="bf16-mixed", memory=80e9, plan=None):  # noqa: B008
    return Setting(made, outline_of(made, precision), layout, device, precision, plan or Plan(), memory)


def rows(methods=METHODS, names=tuple(SHAPES)):
    """The cells of the table, computed."""
    found = []
    for method in methods:
        base = experiment(*METHODS[method], "rollout.prompts=64")
        lora = LoRA(rank=16) if "LoRA" in method else None
        for name in names:
            made = setting(replace(base, policy=Published(name=name, lora=lora)))
            peaks = [memory_of(replace(made, layout=layout)).peak for layout in LAYOUTS.values()]
            found.append([method, name, *(f"{peak / 1e9:.1f}" for peak in peaks)])
    return found


def table():
    """In Markdown."""
    lines = [["method", "policy", *LAYOUTS], ["---"] * (2 + len(LAYOUTS)), *rows()]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


if __name__ == "__main__":
    sys.stdout.write(table())
