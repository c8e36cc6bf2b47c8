"""The next iteration's rollout, made before this iteration's update or beside it."""

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from tpg.training.parallel.ranks import Ranks
from tpg.training.scoring import Scored, Scoring
from tpg.trajectories import Trajectories, concatenate

OnStep = Callable[[], None]


@dataclass(frozen=True, eq=False)
class Rollout:
    """An iteration's responses, whose scoring has begun."""

    iteration: int
    trajectories: Trajectories
    scoring: Scoring

    def scored(self) -> Scored:
        """Their rewards, once all have come."""
        return self.scoring.scored(self.trajectories)

    def state(self, ranks: Ranks) -> dict[str, Any]:
        """All that every process has sampled, as plain tensors."""
        whole = concatenate(ranks.each(lambda: self.trajectories))
        return {"iteration": self.iteration, "tensors": whole.tensors()}


class EndedError(Exception):
    """Raised in the thread, whose result nobody wants any more."""


class Ahead:
    """Keeps the rollout of the next iteration, and makes it in a thread if the engine can work beside the trainer.

    The iteration in hand keeps its own rollout until it is closed, since a run that is stopped before that begins the
    iteration anew.
    """

    def __init__(self) -> None:
        self._current: Rollout | None = None
        self._next: Rollout | None = None
        self._thread: threading.Thread | None = None
        self._failure: BaseException | None = None
        self._ended = False

    def of(self, iteration: int) -> Rollout | None:
        """The rollout that was made ahead for this iteration."""
        return self._current if self._current is not None and self._current.iteration == iteration else None

    def make(self, generate: Callable[[OnStep], Rollout], on_step: OnStep) -> None:
        """Make the next rollout now."""
        self._next = generate(on_step)

    def begin(self, generate: Callable[[OnStep], Rollout], device: str) -> None:
        """Begin to make it in a thread, in the caller's precision on `device`.

        A request to stop does not end it: it is complete, as the update is, before the checkpoint is written from which
        a run continues with the same numbers. `end` ends it.
        """
        # Torch keeps the mixed precision of each thread by itself.
        enabled, dtype = torch.is_autocast_enabled(device), torch.get_autocast_dtype(device)
        precision = torch.autocast(device, dtype=dtype, enabled=enabled)

        def work() -> None:
            try:
                with torch.no_grad(), precision:
                    self._next = generate(self._check)
            except BaseException as failure:
                self._failure = failure

        self._ended, self._failure = False, None
        self._thread = threading.Thread(target=work, name="rollout", daemon=True)
        self._thread.start()

    def turn(self) -> None:
        """Close the iteration: wait for the next one's rollout, and raise here what failed in the thread."""
        self._join()
        if self._failure is not None:
            failure, self._failure = self._failure, None
            raise failure
        self._current, self._next = self._next, None

    def end(self) -> None:
        """End what is under way."""
        self._ended = True
        self._join()
        self._next = self._failure = None

    def state(self, ranks: Ranks) -> dict[str, Any] | None:
        """What a run continues from, beside the weights; every process calls it."""
        return self._current.state(ranks) if self._current else None

    def restore(self, state: Mapping[str, Any], scoring: Scoring, ranks: Ranks, responses_per_prompt: int) -> None:
        """Take this process's share of it back, still to be scored."""
        whole = Trajectories(**state["tensors"])
        prompts = torch.arange(len(whole)).view(-1, responses_per_prompt)
        own = prompts[torch.tensor(ranks.own(range(len(prompts))), dtype=torch.long)].flatten()
        self._current = Rollout(state["iteration"], whole.select(own), scoring)

    def _check(self) -> None:
        if self._ended:
            raise EndedError

    def _join(self) -> None:
        if self._thread is not None:
            self._thread.join()
            self._thread = None
