"""Starting the harness: what it is given, and what it says."""

import functools
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

PACKAGE_FOLDER = str(Path(__file__).parents[3])


@dataclass(frozen=True)
class Limits:
    """What a response's code may use."""

    test_s: float = 5.0
    """Wall time of a test."""
    total_s: float = 20.0
    """Wall time of all tests together; those that are left then are not passed."""
    cpu_s: int = 5
    memory_mb: int = 512
    file_mb: int = 16
    processes: int = 16


class HarnessError(RuntimeError):
    """The tests could not be run, which says nothing of the response."""


def run_tests(
    code: str,
    tests: Sequence[str] | Sequence[dict[str, str]],
    limits: Limits,
    isolated: bool = True,
    installed_packages: bool = False,
) -> list[bool]:
    """Say which tests a response's code passes. Raises `HarnessError` when a test cannot be run on any response."""
    programs = isinstance(tests[0], dict)
    with tempfile.TemporaryDirectory(prefix="tpg-code-", ignore_cleanup_errors=True) as base:
        job = {
            "code": code,
            "tests": len(tests),
            "programs": programs,
            "isolated": isolated,
            "installed_packages": installed_packages,
            "base": base,
            "hidden_paths": [] if installed_packages else [PACKAGE_FOLDER],
            **asdict(limits),
        }
        framed = b"".join(b"%d\n%s" % (len(each), each) for each in (json.dumps(test).encode() for test in tests))
        done = subprocess.run(
            [
                *(sys.executable, *([] if installed_packages else ["-S"]), "-s", "-P", "-B", "-X", "utf8"),
                *("-m", "tpg.rewards.code.harness", str(os.getpid())),
            ],
            input=json.dumps(job).encode() + b"\n" + framed,
            capture_output=True,
            cwd="/",
            # Sets come in the same order every time; nothing else of this process's environment is there.
            env={"PYTHONPATH": PACKAGE_FOLDER, "PYTHONHASHSEED": "0", "LANG": "C.UTF-8", "TMPDIR": "/tmp"},
            start_new_session=True,
        )
    return _verdicts(done, len(tests))


def _verdicts(done: subprocess.CompletedProcess[bytes], count: int) -> list[bool]:
    lines: list[dict[str, Any]] = [json.loads(line) for line in done.stdout.splitlines()]
    for number, verdict in enumerate(lines, start=1):
        if "error" in verdict:
            raise HarnessError(f"test {number}: {verdict['error']}")
    if done.returncode or len(lines) != count:
        said = done.stderr.decode(errors="replace").strip().splitlines() or ["it said nothing"]
        raise HarnessError(f"the sandbox ended with code {done.returncode}: {said[-1]}")
    return [verdict["passed"] for verdict in lines]


@functools.cache
def why_not_isolated() -> str | None:
    """Why this machine has no isolation to offer; None where it has."""
    try:
        passed = run_tests("def f(): return 1", ["assert f() == 1"], Limits())
    except (HarnessError, OSError) as error:
        return str(error)
    return None if passed == [True] else "a test that is right is not passed in it"
