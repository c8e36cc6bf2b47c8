"""What both sides are asked to learn. Plain Python, as it is read in both environments."""

import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from benchmarks.common.workload import Workload


@dataclass(frozen=True, kw_only=True)
class LearningTask:
    """A policy, prompts with answers, and the hyper-parameters that the sides share."""

    name: str
    """sort or quickstart: which reward, and here which experiment of `conf/experiment`."""
    method: str
    """rloo or grpo."""
    model: str
    """The folder of the policy that both sides start from."""
    prompts: tuple[tuple[int, ...], ...]
    """Token ids."""
    answers: tuple[str, ...]
    prompts_per_iteration: int
    responses_per_prompt: int
    response_tokens: int
    """At most."""
    trl_microbatch: int
    """Its per_device_train_batch_size, which bounds memory; here the experiment's own bound."""
    learning_rate: float
    betas: tuple[float, float]
    clip: float | None
    precision: str
    """bf16: autocast over float32 weights; or float32."""
    device: str
    """cpu or gpu."""
    threads: int
    seed: int
    rollout: str = "native"
    """The engine here."""
    overrides: tuple[str, ...] = ()
    """Of the config here."""

    def to_json(self) -> str:
        """One line."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, line: str) -> "LearningTask":
        """What `to_json` wrote."""
        fields: dict[str, Any] = json.loads(line)
        for name in ("answers", "betas", "overrides"):
            fields[name] = tuple(fields[name])
        return cls(**{**fields, "prompts": tuple(map(tuple, fields["prompts"]))})

    @property
    def workload(self) -> Workload:
        """One iteration of it, for what takes its arguments from there."""
        return Workload(
            method=self.method,
            model=self.model,
            prompts=self.prompts[: self.prompts_per_iteration],
            responses_per_prompt=self.responses_per_prompt,
            response_tokens=self.response_tokens,
            responses_per_microbatch=self.trl_microbatch,
            precision=self.precision,
            device=self.device,
            threads=self.threads,
            seed=self.seed,
            learning_rate=self.learning_rate,
            clip=self.clip,
            fixed_length=False,
        )


def sort(response: str, truncated: bool, answer: str) -> float:
    """The share of places that hold the answer's digit; 0 for a response of another length or one that did not end."""
    given = response.strip()
    if truncated or len(given) != len(answer):
        return 0.0
    return sum(ours == theirs for ours, theirs in zip(given, answer, strict=True)) / len(answer)


def quickstart(response: str, truncated: bool, answer: str) -> float:
    """1 if the last whole number of a response that ended is the answer, else 0."""
    numbers = re.findall(r"-?\d+", response)
    return float(not truncated and bool(numbers) and int(numbers[-1]) == int(answer))


REWARDS = {"sort": sort, "quickstart": quickstart}


def told(rewards: Sequence[float], lengths: Sequence[int]) -> dict[str, Any]:
    """What a side says of an iteration's responses."""
    return {
        "reward": sum(rewards) / len(rewards),
        "solved": sum(reward >= 1.0 for reward in rewards) / len(rewards),
        "responses": len(rewards),
        "tokens": sum(lengths),
    }
