"""A policy with random weights, made on the device, and the experiment that trains it."""

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.common.models import QWEN3


def qwen3_policy(size: str, device: str, seed: int, positions: int) -> Any:
    """A `tpg` policy of a Qwen3 shape that never ends a response. Float32 weights."""
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    from tpg.policies.base import Policy
    from tpg.policies.tiny import character_tokenizer

    shape = dict(QWEN3[size])
    hidden, heads = shape["hidden_size"], shape["heads"]
    tokenizer = character_tokenizer()
    config = Qwen3Config(
        vocab_size=shape.get("vocab", 151936),
        hidden_size=hidden,
        intermediate_size=shape["intermediate_size"],
        num_hidden_layers=shape["layers"],
        num_attention_heads=heads,
        num_key_value_heads=shape["key_value_heads"],
        head_dim=128 if hidden >= 1024 else hidden // heads,
        max_position_embeddings=max(4096, positions),
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=tokenizer.pad_token_id,
    )
    config._attn_implementation = "sdpa"
    devices = [torch.cuda.current_device()] if device == "cuda" else []
    with torch.random.fork_rng(devices=devices), torch.device(device):
        torch.manual_seed(seed)
        model = Qwen3ForCausalLM(config)
    model.generation_config.eos_token_id = []
    tokenizer.eos_token = None
    return Policy(model, tokenizer)


def overrides(
    engine: str, prompts: int, responses: int, prompt_tokens: int, response_tokens: int, precision: str, gpu: bool
) -> list[str]:
    """The command line of the experiment; its policy is given beside it."""
    return [
        *("policy=tiny", "task=sort", "reward_model=[function]", "reward_workers=1", "algorithm=rloo", "logger=[csv]"),
        "reward_model.function.function=benchmarks.common.reward:token_reward",
        f"rollout={engine}",
        f"rollout.prompts={prompts}",
        f"rollout.responses_per_prompt={responses}",
        f"rollout.max_prompt_tokens={prompt_tokens}",
        f"rollout.max_response_tokens={response_tokens}",
        f"rollout.batch_responses={prompts * responses}",
        f"update.tokens_per_microbatch={16384 if gpu else 4096}",
        "evaluation.every=0",
        f"trainer={'gpu' if gpu else 'cpu'}",
        f"trainer.precision={precision}",
        "iterations=1000000",
    ]


def prepared_of(policy: Any, prompts: int, prompt_tokens: int, seed: int) -> Any:
    """The policy with prompts of random tokens."""
    from tpg.tasks.base import Example
    from tpg.tasks.rendering import Rendered
    from tpg.training.preparation import Prepared
    from tpg.training.prompts import PromptStream

    size, drawn = policy.model.config.vocab_size, random.Random(f"{seed}-{prompts}-{prompt_tokens}")
    rows = tuple(tuple(drawn.randrange(3, size) for _ in range(prompt_tokens)) for _ in range(prompts))
    stream = PromptStream(Rendered(tuple(Example(str(i)) for i in range(prompts)), rows, 0), seed)
    return Prepared(policy, policy, stream, stream, ())


def module_of(experiment: Any, engine: Any, prepared: Any, reward_model: Any) -> Any:
    """The Lightning module, as a run has it."""
    from tpg.training.module import TrajectoryPolicyGradient
    from tpg.training.run import collector_of

    collector = collector_of(experiment, engine, prepared, reward_model, None, lambda: None)
    return TrajectoryPolicyGradient(collector, experiment.optimizer, experiment.iterations)


def trainer_of(experiment: Any, folder: Path, iterations: int, callbacks: Sequence[Any] = ()) -> Any:
    """Lightning's, for so many iterations."""
    return experiment.trainer.build(iterations, folder, list(callbacks), [], [])
