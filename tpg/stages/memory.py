"""How much of a stage's data fits into memory at a time, once it is known what does not."""

import sys
from collections.abc import Mapping
from typing import Any

from tpg.errors import UserError
from tpg.training.parallel.ranks import Ranks

REMEDIES = "use policy.gradient_checkpointing=true, policy.dtype=bfloat16 or +policy.lora.rank=16"


class Memory:
    """How many tokens a pass of a stage computes at most; None: no bound."""

    def __init__(self, asked: int | None) -> None:
        self.asked = asked
        """The stage's own bound."""
        self.tokens = asked

    def allows(self, tokens: int) -> bool:
        """Whether a pass of so many tokens is within the bound."""
        return self.tokens is None or tokens <= self.tokens

    def lower(self, tokens: int, *, divisible: bool, ranks: Ranks | None = None) -> None:
        """Allow half of the tokens that did not fit, and say so.

        Raises `UserError` where that cannot help: a single row is not `divisible`, and several processes make every
        pass together.
        """
        if not divisible:
            raise UserError(f"out of memory: a single pass of {tokens} tokens does not fit; {REMEDIES}, or max_tokens=")
        if ranks is not None and ranks.world > 1:
            raise UserError(
                f"out of memory on rank {ranks.rank} in a pass of {tokens} tokens; one of several processes cannot"
                f" repeat it in parts: continue with resume=... tokens_per_microbatch={tokens // 2}"
            )
        self.tokens = tokens // 2
        print(
            f"warning: out of memory in a pass of {tokens} tokens; it is repeated in parts, and from here on a pass"
            f" computes at most {self.tokens} (tokens_per_microbatch)",
            file=sys.stderr,
        )

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps: the bound, and what the stage asked for when it was lowered."""
        return {"tokens": self.tokens, "of": self.asked}

    def restore(self, state: Mapping[str, Any] | None) -> None:
        """Take the bound back, unless the stage now asks for another: it may be continued where there is more."""
        if state is not None and state["of"] == self.asked:
            self.tokens = state["tokens"]
