"""Runs that are killed at named moments and continued, beside the same run left alone."""

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from subprocess import PIPE

from processes import TINY, VARIABLES, reproducible, rows

ITERATIONS = 6
RUN = [
    *TINY,
    *["warm_start=supervised", "warm_start.steps=20", f"iterations={ITERATIONS}", "checkpoint.every=2"],
    *["update.responses_per_minibatch=8", "update.responses_per_microbatch=3"],
]

CHECKPOINT = "iteration-*.ckpt"
MOMENTS = {
    "folder being made": ("renaming", "config.yaml"),
    "warm start or decoding": ("before", "tpg.training.checkpoints:StopRequest.check"),
    "warm start written": ("renaming", "warm_start.safetensors"),
    "decoding": ("before", "tpg.rollouts.native.decoding:Decoding._step"),
    "scoring": ("before", "tpg.training.scoring:Scoring.scored"),
    "greedy rewards": ("before", "tpg.training.answers:Answering.greedy_rewards"),
    "continuations": ("before", "tpg.training.answers:Answering.continued"),
    "estimate": ("before", "tpg.method:Method.weigh"),
    "rollout ahead": ("after", "tpg.training.experience:Collector._begin_next"),
    "loss": ("before", "tpg.training.module:TrajectoryPolicyGradient.training_step"),
    "optimizer step": ("after", "tpg.training.module:TrajectoryPolicyGradient.on_before_optimizer_step"),
    "evaluation": ("before", "tpg.training.evaluation:Evaluator.evaluate"),
    "metrics": ("torn", "metrics.csv"),
    "metrics, a new column": ("torn", "metrics.tmp"),
    "completions": ("torn", "completions.jsonl"),
    "tokens": ("torn", "iteration-*[0-9].tmp"),
    "checkpoint": ("torn", "iteration-*.ckpt.tmp"),
    "checkpoint before its name": ("renaming", CHECKPOINT),
    "checkpoint, old one still there": ("renamed", CHECKPOINT),
    "cutting back": ("renaming", "completions.jsonl"),
    "saving": ("before", "tpg.training.module:TrajectoryPolicyGradient.on_save_checkpoint"),
    "policy": ("before", "tpg.policies.base:Policy.save"),
    "policy before its name": ("renaming", "policy"),
    "picture": ("before", "tpg.reporting.learning_curve:draw_learning_curve"),
    "summary": ("renaming", "summary.json"),
}


Moment = str | tuple[str, int]


class Runs:
    """Runs in a folder, one after the other; `close` ends them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        command = [sys.executable, str(Path(__file__).with_name("forks.py"))]
        self._forks = subprocess.Popen(
            command, stdin=PIPE, stdout=PIPE, text=True, env={**os.environ, **VARIABLES}, start_new_session=True
        )

    def left_alone(self, name: str, *overrides: str) -> tuple[Path, dict[str, int]]:
        """A whole run, and how often each moment came."""
        folder = self.folder / name
        code = self._run(folder, None, f"run_dir={folder}", *RUN, *overrides)
        assert code == 0, _log(folder)[-3000:]
        counts = [json.loads(path.read_text()) for path in _notes(folder).glob("*.counts")]
        return folder, {moment: max((each[moment] for each in counts), default=0) for moment in MOMENTS}

    def killed(self, name: str, moments: Sequence[Moment], counts: dict[str, int], *overrides: str) -> Path:
        """The same run, killed at each of these moments in turn and then continued to its end.

        How often a moment is let go by is given, or drawn by a seed that is the name from what comes in the third
        iteration or the last: an earlier one has left a checkpoint.
        """
        folder, generator = self.folder / name, random.Random(name)
        for moment in moments:
            after = checkpointed(folder)
            kill = moment if isinstance(moment, tuple) else (moment, _drawn(generator, counts[moment], after))
            code = self._run(folder, kill, *_given(folder, overrides))
            print(f"{name}: from iteration {after}, killed at {kill}")
            assert code == -signal.SIGKILL, f"{kill} after {after}: exit {code}\n{_log(folder)[-3000:]}"
        assert self._run(folder, None, *_given(folder, overrides)) == 0, _log(folder)[-3000:]
        return folder

    def resumed(self, folder: Path, code: int = 0) -> str:
        """What the run says that continues this one and ends with this exit code."""
        said = len(_log(folder))
        assert self._run(folder, None, f"resume={folder}") == code, _log(folder)[-3000:]
        return _log(folder)[said:]

    def close(self) -> None:
        """Leave no process behind."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._forks.pid, signal.SIGKILL)
        self._forks.wait()

    def _run(self, folder: Path, kill: tuple[str, int] | None, *overrides: str) -> int:
        """The exit code."""
        notes = _notes(folder)
        notes.mkdir(exist_ok=True)
        for left in notes.iterdir():
            left.unlink()
        moments = json.dumps({"moments": MOMENTS, "folder": str(notes), "kill": kill})
        told = {"argv": overrides, "variables": {"TPG_TEST_MOMENTS": moments}, "log": str(_beside(folder, "log"))}
        assert self._forks.stdin is not None
        assert self._forks.stdout is not None
        self._forks.stdin.write(json.dumps(told) + "\n")
        self._forks.stdin.flush()
        return int(self._forks.stdout.readline())


def _drawn(generator: random.Random, count: int, after: int) -> int:
    """Which of those that come in one iteration, where `count` come in a whole run."""
    n = min(3, ITERATIONS - after)
    least = max(1, count * (n - 1) // ITERATIONS + 1)
    return generator.randint(least, max(least, count * n // ITERATIONS))


def _given(folder: Path, overrides: Sequence[str]) -> list[str]:
    begun = (folder / "config.yaml").exists()
    return [f"resume={folder}"] if begun else [f"run_dir={folder}", *RUN, *overrides]


def checkpointed(folder: Path) -> int:
    """The iteration that the run would continue after."""
    return max((int(path.stem.split("-")[1]) for path in folder.glob(f"checkpoints/{CHECKPOINT}")), default=0)


def assert_same(folder: Path, other: Path) -> None:
    """All that a run leaves but the times."""
    assert len(rows(other)) == ITERATIONS
    assert reproducible(folder) == reproducible(other)
    assert _files(folder) == _files(other)
    for name in _files(other):
        assert (folder / name).read_bytes() == (other / name).read_bytes(), name
    last, expected = (json.loads((place / "summary.json").read_text()) for place in (folder, other))
    clock = ("seconds", "last")
    assert {k: v for k, v in last.items() if k not in clock} == {k: v for k, v in expected.items() if k not in clock}


def _files(folder: Path) -> list[str]:
    """Those that must be the same, byte for byte."""
    patterns = ("completions.jsonl", "tokens/*", "policy/*", "warm_start.safetensors")
    return sorted(str(path.relative_to(folder)) for pattern in patterns for path in folder.glob(pattern))


def _notes(folder: Path) -> Path:
    return _beside(folder, "notes")


def _beside(folder: Path, suffix: str) -> Path:
    return folder.with_name(f"{folder.name}.{suffix}")


def _log(folder: Path) -> str:
    return _beside(folder, "log").read_text()
