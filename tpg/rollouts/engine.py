"""What a rollout engine is."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Self

import torch
from pydantic import Field
from torch import Tensor

from tpg.component import component
from tpg.policies.base import Policy
from tpg.rollouts.sampling import Sampling
from tpg.trajectories import FinishReason, Trajectories


@dataclass(frozen=True)
class Prefix:
    """What is to be continued: a prompt, or a prompt with the first tokens of a response."""

    prompt_ids: tuple[int, ...]
    max_tokens: int
    """Limit on the new tokens of each continuation."""
    keys: tuple[int, ...]
    """A random key for each continuation wanted (`tpg.randomness.key`); their number is how many there will be."""
    row: int
    draw: int = 0
    response_ids: tuple[int, ...] = ()
    """Response tokens that are given."""
    parent: int = -1
    """The trajectory that `response_ids` are taken from; -1 for a prompt."""


def no_step() -> None:
    """Called after a decoding step by default: does nothing."""


@dataclass(frozen=True)
class Finished:
    """A response that is complete while others are still being generated."""

    place: int
    """Its row in what `generate` will return: where `expanded(prefixes)` has it."""
    token_ids: tuple[int, ...]
    """All of the response as the record will hold it: given tokens first, the end token where it was sampled."""
    reason: FinishReason


OnFinished = Callable[[Sequence[Finished]], None]


@component
class RolloutOptions(ABC):
    """How many responses are generated an iteration, how they are sampled, and by what."""

    prompts: int = Field(default=8, ge=1)
    """Prompts an iteration."""
    responses_per_prompt: int = Field(default=8, ge=1)
    """Group size G."""
    max_prompt_tokens: int = Field(default=512, ge=1)
    max_response_tokens: int = Field(default=256, ge=1)
    temperature: float = Field(default=1.0, gt=0)
    top_k: int | None = Field(default=None, ge=1)
    top_p: float | None = Field(default=None, gt=0, le=1)
    min_p: float | None = Field(default=None, ge=0, lt=1)
    lag: int = Field(default=0, ge=0, le=1)
    """Iterations between the policy that generates a rollout and the one that learns from it; 1 frees an engine to
    generate beside the update.
    """

    @property
    def sampling(self) -> Sampling:
        """How training responses are drawn."""
        return Sampling(self.temperature, self.top_k, self.top_p, self.min_p)

    def other_precision(self, precision: str) -> str | None:
        """What it decodes in where that is not what an update at `trainer.precision` computes in; None where it is."""
        return None

    def decodes_in(self, precision: str) -> torch.dtype | None:
        """The type in which weights made for this engine alone are best held; None: as the policy's are."""
        return None

    def check(self) -> None:  # noqa: B027
        """Raise `UserError` for what this machine lacks. Loads nothing."""

    @abstractmethod
    def build(self, policy: Policy) -> "Engine":
        """The engine for a policy; it generates with the weights that the policy has at each call."""


class Engine(ABC):
    """Generates responses of one policy."""

    def __init__(self, options: RolloutOptions, policy: Policy) -> None:
        self.options = options
        self.policy = policy

    @property
    def beside_trainer(self) -> bool:
        """Whether it holds weights of its own, and so can generate in a thread while the policy is trained."""
        return False

    def hold(self) -> None:  # noqa: B027
        """Take the policy's weights as they are now for the next `generate`, whatever becomes of them meanwhile.

        Called only where `beside_trainer`; without it `generate` reads the policy when it is called.
        """

    @property
    def note(self) -> str | None:
        """What its user should know before the run, in a line."""
        if self.options.lag and not self.beside_trainer:
            return (
                f"rollout.lag={self.options.lag}: this engine reads the policy's own weights; it generates the next"
                " rollout before the update, not beside it, which saves no time"
            )
        return None

    @abstractmethod
    def generate(
        self,
        prefixes: Sequence[Prefix],
        sampling: Sampling,
        *,
        version: int = 0,
        on_step: Callable[[], None] = no_step,
        retain: bool = False,
        on_finished: OnFinished | None = None,
    ) -> Trajectories:
        """Continue every prefix, if there is any, once for each of its keys, at least one.

        A prefix's continuations lie side by side. A continuation's response holds the given tokens too, outside
        `action_mask_BT`. Log-probabilities are the untruncated policy's at the sampling temperature (at 1 when greedy).
        `on_step` is called after each decoding step and may raise to end the generation. `on_finished` is given
        responses as they are complete, in any order, each at most once, so that they are scored while others are
        generated; what it never got is scored afterwards. With `retain` an engine may keep what it computed until
        `release`, so that prefixes whose `parent` is one of these trajectories are not computed again; the policy may
        not change meanwhile.
        """

    def release(self) -> None:  # noqa: B027
        """Drop what was retained."""

    def close(self) -> None:
        """End what the engine has started."""
        self.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@dataclass(frozen=True)
class Continuation:
    """One row of work: a prefix and one of its keys."""

    prefix: Prefix
    key: int
    index: int


def expanded(prefixes: Sequence[Prefix]) -> list[Continuation]:
    """Every continuation that is wanted, in order."""
    return [Continuation(prefix, key, i) for prefix in prefixes for i, key in enumerate(prefix.keys)]


def finished(part: Trajectories, start: int) -> list[Finished]:
    """Consecutive rows of the output, from row `start`, as finished responses."""
    rows = zip(part.response_ids_BT, part.response_mask_BT, part.finish_reason_B.tolist(), strict=True)
    return [
        Finished(start + i, tuple(ids[mask].tolist()), FinishReason(reason))
        for i, (ids, mask, reason) in enumerate(rows)
    ]


def assembled(
    rows: Sequence[Continuation],
    new_ids: Sequence[Sequence[int]],
    new_logprobs: Sequence[Tensor],
    finish: Sequence[FinishReason],
    policy: Policy,
    version: int,
) -> Trajectories:
    """The record of generated rows, on the CPU. `new_ids` hold the end token where it was sampled."""
    prompts = max((len(row.prefix.prompt_ids) for row in rows), default=1)
    given = [len(row.prefix.response_ids) for row in rows]
    width = max([1, *(g + len(ids) for g, ids in zip(given, new_ids, strict=True))])
    B = len(rows)
    prompt_ids_BP = torch.full((B, prompts), policy.pad_id)
    prompt_mask_BP = torch.zeros(B, prompts, dtype=torch.bool)
    response_ids_BT = torch.full((B, width), policy.pad_id)
    response_mask_BT = torch.zeros(B, width, dtype=torch.bool)
    action_mask_BT = torch.zeros(B, width, dtype=torch.bool)
    logprobs_BT = torch.zeros(B, width, dtype=torch.float32)  # whatever precision the policy is held in
    for i, (row, ids, logprobs) in enumerate(zip(rows, new_ids, new_logprobs, strict=True)):
        start, end = given[i], given[i] + len(ids)
        prompt_ids_BP[i, prompts - len(row.prefix.prompt_ids) :] = torch.tensor(row.prefix.prompt_ids)
        prompt_mask_BP[i, prompts - len(row.prefix.prompt_ids) :] = True
        response_ids_BT[i, :end] = torch.tensor([*row.prefix.response_ids, *ids])
        response_mask_BT[i, :end] = True
        action_mask_BT[i, start:end] = True
        logprobs_BT[i, start:end] = logprobs.float()
    return Trajectories(
        prompt_ids_BP=prompt_ids_BP,
        prompt_mask_BP=prompt_mask_BP,
        response_ids_BT=response_ids_BT,
        response_mask_BT=response_mask_BT,
        action_mask_BT=action_mask_BT,
        rollout_logprobs_BT=logprobs_BT,
        row_B=_numbers(row.prefix.row for row in rows),
        draw_B=_numbers(row.prefix.draw for row in rows),
        response_index_B=_numbers(row.index for row in rows),
        finish_reason_B=_numbers(int(reason) for reason in finish),
        parent_B=_numbers(row.prefix.parent for row in rows),
        position_B=_numbers(given),
        version_B=torch.full((B,), version),
    )


def _numbers(values: Iterable[int]) -> Tensor:
    return torch.tensor(list(values), dtype=torch.long)
