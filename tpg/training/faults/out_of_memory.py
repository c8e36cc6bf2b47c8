"""What is done when a pass does not fit into memory: the same in smaller parts, or one clear line."""

from __future__ import annotations

import contextlib
import sys
import textwrap
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from torch import Tensor

from tpg.errors import UserError, with_kind
from tpg.policies.memory import ran_out, tried
from tpg.training.options import Update
from tpg.training.parallel.ranks import Ranks
from tpg.training.splitting import Splitter

T = TypeVar("T")

REMEDIES = (
    "use policy.gradient_checkpointing=true, policy.dtype=bfloat16, policy.lora={rank:16} or a smaller"
    " rollout.max_response_tokens"
)


class Memory:
    """How many tokens a pass of this run computes at most, once it is known what does not fit."""

    def __init__(self) -> None:
        self.tokens: int | None = None

    def bounded(self, update: Update) -> Update:
        """The update with this bound where its own is higher."""
        own = update.tokens_per_microbatch
        if self.tokens is None or (own is not None and own <= self.tokens):
            return update
        return replace(update, tokens_per_microbatch=self.tokens)

    def state(self, update: Update) -> dict[str, Any]:
        """What a checkpoint keeps: the bound, and what the update asked for when it was lowered."""
        return {"tokens": self.tokens, "of": update.tokens_per_microbatch}

    def restore(self, state: Mapping[str, Any], update: Update) -> None:
        """Take the bound back, unless the update now asks for another: it may be continued where there is more."""
        self.tokens = state["tokens"] if state["of"] == update.tokens_per_microbatch else None

    def lower(self, tokens: int, ranks: Ranks, *, divisible: bool, whole_groups: bool = False) -> None:
        """Allow half of the tokens that did not fit, and say so.

        Raises `UserError` where that cannot help: a single response is no longer `divisible`, nor with `whole_groups` a
        single prompt's, and processes that exchange gradients or layers make every pass together.
        """
        if not divisible:
            what = "the responses to a prompt, which the objective compares," if whole_groups else "a single response"
            fewer = " or fewer rollout.responses_per_prompt" if whole_groups else ""
            raise UserError(f"out of memory: {what} with {tokens} tokens in all does not fit; {REMEDIES}{fewer}")
        self.tokens = halved(tokens, ranks, "update.tokens_per_microbatch")


def halved(tokens: int, ranks: Ranks, key: str) -> int:
    """Half of the tokens of a pass that did not fit, which is said; `key` bounds them in the config.

    Raises `UserError` with several processes.
    """
    if ranks.world > 1:
        raise UserError(
            f"out of memory on rank {ranks.rank} in a pass of {tokens} tokens; one of several processes cannot"
            f" repeat it in parts: continue with resume=... {key}={tokens // 2}"
        )
    print(
        f"warning: out of memory in a pass of {tokens} tokens; it is repeated in parts, and from here on a pass"
        f" computes at most {tokens // 2} ({key})",
        file=sys.stderr,
    )
    return tokens // 2


@contextlib.contextmanager
def told_if_out_of_memory(folder: Path) -> Iterator[None]:
    """Raise `UserError` with the remedies where memory ran out in what is not repeated in parts."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not ran_out(error):
            raise
        said = textwrap.shorten(with_kind(error), 200, placeholder=" ...")
        raise UserError(
            f"out of memory in {_place(error)} ({said}): {REMEDIES}, a smaller update.tokens_per_microbatch,"
            " warm_start.examples_per_step or rollout.batch_responses, or optimizer=adamw_8bit; continue with python -m"
            f" tpg.train resume={folder}"
        ) from error


def _place(error: BaseException) -> str:
    """The innermost function of this package that an error went through."""
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    own = [frame for frame in frames if frame.f_globals.get("__name__", "").startswith("tpg.")]
    return f"{own[-1].f_globals['__name__']}.{own[-1].f_code.co_name}"


def in_parts(
    work: Callable[[Tensor], T], index: Tensor, splitter: Splitter, memory: Memory, ranks: Ranks
) -> list[tuple[Tensor, T]]:
    """`work` on the responses of `index`, all together or in as many parts as memory asks for, each with its result."""
    waiting, done = [index], []
    while waiting:
        part = waiting.pop(0)
        found = tried(lambda part=part: work(part))  # type: ignore[misc]
        if found:
            done.append((part, found[0]))
            continue
        memory.lower(splitter.cost(part.tolist()), ranks, divisible=len(part) > 1)
        splitter.limits = replace(splitter.limits, tokens=memory.tokens)
        waiting = [smaller for larger in (part, *waiting) for smaller in splitter.parts(larger)]
    return done
