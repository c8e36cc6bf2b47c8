"""Rewards for mathematical equivalence, judged by Hugging Face's math-verify."""

import logging
from types import ModuleType

from tpg.component import component
from tpg.rewards.base import AnswerTerm, Sample


@component
class MathVerify(AnswerTerm):
    """1 where math-verify finds the response's final expression equivalent to the answer; else 0."""

    def warm_up(self) -> None:
        """Import math-verify and let it build its grammars."""
        self.score(Sample(prompt="", response="$1/2$", answer="1/2"))

    def compare(self, sample: Sample, answer: str) -> float:
        """Give 1 or 0. Raises `ValueError` when math-verify reads no expression in the answer."""
        library = _math_verify()
        # Bare LaTeX ("x^2+1") is only read inside math delimiters.
        delimited = answer if "$" in answer or "\\boxed" in answer else rf"\boxed{{{answer}}}"
        # The library's own time-outs are alarms, of which a process has one; ours end the worker instead.
        wanted = library.parse(delimited, parsing_timeout=None)
        if not wanted:
            raise ValueError(f"math-verify reads no expression in the answer {answer!r}")
        found = library.parse(sample.response, parsing_timeout=None)
        return float(library.verify(wanted, found, timeout_seconds=None))


def _math_verify() -> ModuleType:
    import math_verify

    # It warns once in every process that time-outs are now the caller's business.
    logging.getLogger("math_verify").setLevel(logging.ERROR)
    return math_verify
