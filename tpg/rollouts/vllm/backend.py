"""What a running vLLM is asked for, wherever it runs."""

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor

from tpg.rollouts.engine import no_step
from tpg.rollouts.sampling import Sampling
from tpg.trajectories import FinishReason

ARGUMENT = "tpg"
"""The name under which a request says how its tokens are drawn."""


@dataclass(frozen=True)
class Request:
    """A sequence to be continued once."""

    token_ids: tuple[int, ...]
    max_tokens: int
    key: int

    def parameters(self, sampling: Sampling, end_ids: Iterable[int]) -> dict[str, Any]:
        """The sampling parameters for vLLM, which takes the likeliest token; `Drawing` leaves it one."""
        drawing = {"key": f"{self.key:x}", "tokens": self.max_tokens, **asdict(sampling)}
        return {
            "temperature": 0.0,
            "max_tokens": self.max_tokens,
            "logprobs": 0,
            "detokenize": False,
            "ignore_eos": True,  # the end tokens are the policy's, not those of a config
            "stop_token_ids": sorted(end_ids),
            "extra_args": {ARGUMENT: json.dumps(drawing)},
        }


@dataclass(frozen=True, eq=False)
class Answer:
    """The new tokens of a request, the end token included, and their log-probabilities."""

    token_ids: list[int]
    logprobs: list[float]
    reason: FinishReason


def reason_of(finish_reason: str) -> FinishReason:
    """By vLLM's word for why a response ended."""
    if finish_reason not in ("stop", "length"):
        raise RuntimeError(f"vLLM ended a response by {finish_reason!r}")
    return FinishReason.STOP if finish_reason == "stop" else FinishReason.LENGTH


OnAnswers = Callable[[Sequence[int], Sequence[Answer]], None]
"""Told of answers as they come, with their requests' places."""


def unheard(places: Sequence[int], answers: Sequence[Answer]) -> None:
    """Told of answers by default: does nothing."""


class Backend(ABC):
    """A vLLM that generates."""

    name: str
    """For its user."""
    advice: str = "use another engine, e.g. rollout=transformers"
    """What to do when it does not compute what it should."""

    @abstractmethod
    def load(self, weights: Iterable[tuple[str, Tensor]]) -> None:
        """Replace the weights in place, and forget keys and values that the former ones made."""

    @abstractmethod
    def answer(
        self,
        requests: Sequence[Request],
        sampling: Sampling,
        end_ids: frozenset[int],
        on_step: Callable[[], None] = no_step,
        on_answers: OnAnswers = unheard,
    ) -> list[Answer]:
        """Answer all, in order. If `on_step` raises, nothing of them goes on and the next call finds it ready."""

    def sleep(self) -> None:  # noqa: B027
        """Free the memory of an accelerator until `wake`; the weights are lost."""

    def wake(self) -> None:  # noqa: B027
        """Take the memory back; `load` must follow."""

    def close(self) -> None:  # noqa: B027
        """End what was started."""
