"""Code as a reward: the share of a dataset's tests that a response's Python passes."""

import re
from collections.abc import Sequence
from typing import Any

from pydantic import Field, ValidationInfo, field_validator

from tpg.component import component
from tpg.errors import UserError
from tpg.rewards.base import RewardTerm, Sample
from tpg.rewards.code.sandbox import Limits, run_tests, why_not_isolated

BLOCK = re.compile(r"^[ \t]*```[ \t]*(\w*)[^\n]*\n(.*?)(?:^[ \t]*```|\Z)", re.MULTILINE | re.DOTALL)
PYTHON = {"", "python", "python3", "py"}
STARTING_S = 5.0
"""What `timeout_s` leaves beyond `total_s` for processes to start."""


@component
class PythonTests(RewardTerm):
    """The share of tests passed by the last fenced block of Python in the response (without one: by the whole of it).

    A test is Python, mostly one assert statement, or {input, output} of a program; the column holds a list of either.
    The response's code runs in a sandbox (`docs/security.md`), once a test, in a process that never holds the test.
    """

    timeout_s: float = Field(default=30.0, gt=0)
    """Of the response as a whole, the sandbox's own work included: beyond it, it is unscored. More than `total_s`."""
    tests_column: str = "tests"
    fenced_only: bool = False
    """Whether a response without a fenced block gets 0 untried."""
    test_s: float = Field(default=5.0, gt=0)
    """Wall time of a test."""
    total_s: float = Field(default=20.0, gt=0)
    """Wall time of all tests of a response; those that are left then are not passed."""
    cpu_s: int = Field(default=5, ge=1)
    """Processor time of a test, each process counted by itself."""
    memory_mb: int = Field(default=512, ge=64)
    """Addresses that a process may have."""
    file_mb: int = Field(default=16, ge=1)
    """Size of the empty folder that a test works in, and of any file."""
    processes: int = Field(default=16, ge=1)
    """Processes and threads at a time."""
    installed_packages: bool = False
    """Whether the code may import what is installed beside tpg, and not Python's own library alone."""
    allow_unisolated: bool = False
    """Whether code runs without isolation, with the network and this user's files, where there are no namespaces."""

    @field_validator("total_s")
    @classmethod
    def _ends_in_time(cls, total_s: float, others: ValidationInfo) -> float:
        timeout_s = others.data.get("timeout_s")
        if timeout_s is not None and total_s + STARTING_S > timeout_s:
            raise ValueError(f"{total_s:g} and {STARTING_S:g} s to start are more than timeout_s={timeout_s:g}")
        return total_s

    def required_columns(self) -> frozenset[str]:
        """Name the column of tests."""
        return frozenset({self.tests_column})

    def check(self, key: str) -> None:
        """Raise `UserError` where code cannot be isolated, unless that is allowed."""
        if not self.allow_unisolated and (why := why_not_isolated()) is not None:
            raise UserError(
                f"{key}.allow_unisolated=false: this machine cannot isolate a response's code ({why}); allow user"
                f" namespaces, or let it reach the network and your files with {key}.allow_unisolated=true"
            )

    def warm_up(self) -> None:
        """Find out what this machine offers."""
        why_not_isolated()

    def score(self, sample: Sample) -> float:
        """Give the share in [0, 1]. Raises `ValueError` for a column without tests, `HarnessError` for a bad one."""
        column = self.tests_column
        tests = _tests(sample.answer if column == "answer" else sample.columns.get(column), column)
        code = python_of(sample.response, self.fenced_only)
        if not code.strip():
            return 0.0
        isolated = why_not_isolated() is None
        if not isolated and not self.allow_unisolated:
            raise RuntimeError(f"a response's code cannot be isolated here: {why_not_isolated()}")
        limits = Limits(self.test_s, self.total_s, self.cpu_s, self.memory_mb, self.file_mb, self.processes)
        passed = run_tests(code, tests, limits, isolated, self.installed_packages)
        return sum(passed) / len(passed)


def python_of(response: str, fenced_only: bool = False) -> str:
    """The last fenced block of Python, or one without a language; without any the response, or nothing."""
    blocks = [body for language, body in BLOCK.findall(response) if language.lower() in PYTHON]
    if blocks:
        return blocks[-1]
    return "" if fenced_only else response


def _tests(given: Any, column: str) -> Sequence[str] | Sequence[dict[str, str]]:
    """The column's tests. Raises `ValueError` for what is none."""
    tests = [given] if isinstance(given, str | dict) else given
    if isinstance(tests, list) and tests:
        if all(isinstance(test, str) and test.strip() for test in tests):
            return tests
        if all(isinstance(test, dict) and _is_pair(test) for test in tests):
            return [{"input": test["input"], "output": test["output"]} for test in tests]
    raise ValueError(
        f"the column {column!r} must hold a list of tests, each Python, or each {{input, output}} as text; not"
        f" {str(given)[:80]!r}"
    )


def _is_pair(test: dict[str, Any]) -> bool:
    return all(isinstance(test.get(key), str) for key in ("input", "output"))
