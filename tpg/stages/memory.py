"""How much of a stage's data fits into memory at a time, once it is known what does not."""

from collections.abc import Mapping
from typing import Any

from tpg.errors import UserError
from tpg.training.faults.out_of_memory import halved
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
        self.tokens = halved(tokens, ranks or Ranks(), "tokens_per_microbatch")

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps: the bound, and what the stage asked for when it was lowered."""
        return {"tokens": self.tokens, "of": self.asked}

    def restore(self, state: Mapping[str, Any] | None) -> None:
        """Take the bound back, unless the stage now asks for another: it may be continued where there is more."""
        if state is not None and state["of"] == self.asked:
            self.tokens = state["tokens"]
