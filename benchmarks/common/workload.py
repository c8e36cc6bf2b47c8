"""What both sides are asked to do. Plain Python, as it is read in both environments."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Workload:
    """One iteration: the same prompts every time, responses of one length, one optimizer step."""

    method: str
    """grpo or rloo."""
    model: str
    """A folder in Hugging Face format, or a hub id."""
    prompts: tuple[tuple[int, ...], ...]
    """Token ids."""
    responses_per_prompt: int
    response_tokens: int
    responses_per_microbatch: int | None
    """TRL's `per_device_train_batch_size`; here `update.responses_per_microbatch`, None: as conf/update says."""
    precision: str
    """bf16: autocast over float32 weights; or float32."""
    device: str
    """cpu or gpu."""
    threads: int
    seed: int = 0
    learning_rate: float = 1e-6
    clip: float | None = 1.0
    """Largest norm of the gradient; None: unclipped."""
    fixed_length: bool = True
    """Whether no response may end before `response_tokens`."""
    rollout: str = "native"
    """The engine here."""
    overrides: tuple[str, ...] = ()
    """Of the config here."""

    @property
    def responses(self) -> int:
        """An iteration's."""
        return len(self.prompts) * self.responses_per_prompt

    def to_json(self) -> str:
        """One line."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, line: str) -> "Workload":
        """What `to_json` wrote."""
        fields: dict[str, Any] = json.loads(line)
        fields["prompts"] = tuple(map(tuple, fields["prompts"]))
        fields["overrides"] = tuple(fields["overrides"])
        return cls(**fields)


def fingerprint(prompts: Sequence[Sequence[int]]) -> str:
    """Of the prompts' tokens, whatever their order."""
    told = json.dumps(sorted(map(list, prompts)))
    return hashlib.sha256(told.encode()).hexdigest()[:16]


def work_done(
    prompts: Sequence[Sequence[int]], lengths: Sequence[int], updated: int, optimizer_steps: int
) -> dict[str, Any]:
    """What a side tells of an iteration: the prompt of every response, its length, how many had a non-zero weight."""
    return {
        "prompts": fingerprint(prompts),
        "responses": len(lengths),
        "shortest": min(lengths),
        "longest": max(lengths),
        "updated": updated,
        "optimizer_steps": optimizer_steps,
    }


def unequal_work(workload: Workload, done: dict[str, Any]) -> str | None:
    """The first thing that a side did otherwise than asked, in a line; None if there is none."""
    repeated = [prompt for prompt in workload.prompts for _ in range(workload.responses_per_prompt)]
    lengths = [workload.response_tokens] * workload.responses
    asked = work_done(repeated, lengths, workload.responses, 1)
    for name, value in asked.items():
        if done[name] != value:
            return f"{name}: asked for {value}, done {done[name]}"
    return None
