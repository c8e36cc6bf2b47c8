"""Whether a device computes what a CPU does: engines, layouts, and a run that is continued; on a tiny model."""

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.curves.ours import composed
from benchmarks.device.setup import module_of, overrides, prepared_of, qwen3_policy, trainer_of
from tpg.errors import with_kind
from tpg.rollouts.sampling import Sampling

PROMPTS, GROUP, PROMPT_TOKENS, TOKENS = 3, 4, 9, 24
FLOAT32_GAP, BF16_GAP, RESUMED_GAP = 1e-3, 0.1, 1e-4
"""Nats a token; of float32 log-probabilities, of bf16 ones, and of a weight after an update."""


def checks(device: str, engines: Sequence[str], seed: int) -> list[tuple[str, Callable[[], dict[str, Any]]]]:
    """Every check by name; each tells whether it `passed`, and in numbers by how much."""
    return [
        *((f"greedy tokens of {name}", lambda n=name: greedy_tokens(n, device, seed)) for name in engines),
        ("log-probabilities of layouts in float32", lambda: layouts(device, seed, "32-true")),
        ("log-probabilities of layouts in bf16", lambda: layouts(device, seed, "bf16-mixed")),
        ("a continued run", lambda: continued(device, engines[0], seed)),
    ]


def checked(check: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """The check's outcome; one that raises has failed."""
    try:
        return check()
    except Exception as error:
        return {"passed": False, "error": with_kind(error)[:500]}


def experiment_of(engine: str, device: str, precision: str, seed: int) -> Any:
    """Small, on the device."""
    given = overrides(engine, PROMPTS, GROUP, PROMPT_TOKENS, TOKENS, precision, device == "cuda")
    return composed([*given, f"seed={seed}", "optimizer.lr=1e-3"])


def _generated(engine: str, device: str, seed: int, sampling: Sampling) -> Any:
    experiment = experiment_of(engine, device, "32-true", seed)
    policy = qwen3_policy("tiny", "cpu", seed, PROMPT_TOKENS + TOKENS).to(device)  # the same weights everywhere
    prefixes = prepared_of(policy, PROMPTS, PROMPT_TOKENS, seed).training.draw(1, experiment.rollout)
    prefixes = [replace(prefix, prompt_ids=prefix.prompt_ids[row:]) for row, prefix in enumerate(prefixes)]
    with experiment.rollout.build(policy) as made:
        return policy, made.generate(prefixes, sampling)


def greedy_tokens(engine: str, device: str, seed: int) -> dict[str, Any]:
    """In float32 those of the device are those of transformers' generate on the CPU, and so are their log-probs."""
    _, there = _generated(engine, device, seed, Sampling(temperature=0.0))
    _, here = _generated("transformers", "cpu", seed, Sampling(temperature=0.0))
    same = torch.equal(there.response_ids_BT.cpu(), here.response_ids_BT)
    gap = float((there.rollout_logprobs_BT.cpu() - here.rollout_logprobs_BT).abs().max()) if same else None
    return {"passed": same and gap is not None and gap < FLOAT32_GAP, "tokens_equal": same, "largest_gap": gap}


@torch.no_grad()
def layouts(device: str, seed: int, precision: str) -> dict[str, Any]:
    """With shared prompts and as a padded rectangle."""
    policy, rollout = _generated("transformers", device, seed, Sampling())
    trajectories = rollout.to(torch.device(device))
    with torch.autocast(device, dtype=torch.bfloat16, enabled=precision == "bf16-mixed"):
        shared, padded = (
            policy.statistics(trajectories, 1.0, layout=layout).logprobs.float() for layout in ("shared", "padded")
        )
    gap = float((shared - padded).abs().max())
    return {"passed": gap < (BF16_GAP if precision == "bf16-mixed" else FLOAT32_GAP), "largest_gap": gap}


def continued(device: str, engine: str, seed: int) -> dict[str, Any]:
    """Two iterations in one go, and in two with a checkpoint between them."""
    with tempfile.TemporaryDirectory() as folder:
        whole = _trained(device, engine, seed, Path(folder), 2, None)
        _trained(device, engine, seed, Path(folder), 1, None)
        again = _trained(device, engine, seed, Path(folder), 2, Path(folder) / "1.ckpt")
    start = qwen3_policy("tiny", "cpu", seed, PROMPT_TOKENS + TOKENS).state_dict()
    gap = max(float((whole[name] - again[name]).abs().max()) for name in whole)
    moved = max(float((whole[name] - start[name]).abs().max()) for name in whole)
    return {"passed": gap < RESUMED_GAP < moved, "largest_gap": gap, "largest_step": moved}


def _trained(
    device: str, engine: str, seed: int, folder: Path, iterations: int, checkpoint: Path | None
) -> dict[str, Any]:
    experiment = experiment_of(engine, device, "32-true", seed)
    policy = qwen3_policy("tiny", "cpu", seed, PROMPT_TOKENS + TOKENS)
    prepared = prepared_of(policy, PROMPTS, PROMPT_TOKENS, seed)
    with (
        prepared.reward_model(experiment) as reward_model,
        experiment.rollout.build(policy) as made,
    ):
        module = module_of(experiment, made, prepared, reward_model)
        trainer = trainer_of(experiment, folder, iterations)
        with module.collector:
            trainer.fit(module, ckpt_path=checkpoint, weights_only=True if checkpoint else None)
        trainer.save_checkpoint(folder / f"{iterations}.ckpt")
    return {name: value.detach().cpu() for name, value in policy.state_dict().items()}
