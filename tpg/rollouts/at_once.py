"""How many responses are decoded at once."""

import sys

from tpg.errors import UserError


class AtOnce:
    """`most` responses; fewer from where memory has run out on. What is generated does not depend on it.

    `remedy` is the override by which the policy decodes in a shorter type.
    """

    def __init__(self, most: int, remedy: str) -> None:
        self.most = most
        self.remedy = remedy

    def lower(self, responses: int) -> None:
        """Allow half of those that did not fit, and say so. Raises `UserError` where it was one alone."""
        if responses <= 1:
            raise UserError(
                "out of memory: a single response cannot be decoded; use a smaller rollout.max_response_tokens or"
                f" rollout.max_prompt_tokens, {self.remedy}, or a smaller policy"
            )
        self.most = responses // 2
        print(
            f"warning: out of memory in decoding {responses} responses at once; they are generated again, and from here"
            f" on at most {self.most} at once (rollout.batch_responses)",
            file=sys.stderr,
        )
