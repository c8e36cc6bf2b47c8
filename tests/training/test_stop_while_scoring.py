"""A run that waits for rewards is stopped by a signal, and leaves the boundary before them."""

import signal

from processes import TINY, interrupted, resume, rows

HANGING = """
import time
from pathlib import Path

HERE = Path(__file__).parent

def length(response, prompt):
    with (HERE / "scored").open("a") as scored:
        scored.write(".")
        third_iteration = scored.tell() > 2 * 16
    if third_iteration and not (HERE / "freed").exists():
        (HERE / "stuck").touch()
        time.sleep(3600)
    return float(len(response))
"""
RUN = [
    *[word for word in TINY if not word.startswith(("reward_model", "evaluation"))],
    *["reward_model=[function]", "reward_model.function.function=hanging:length"],
    *["reward_model.function.timeout_s=3600", "evaluation.every=0", "iterations=4", "checkpoint.every=100"],
]


def test_sigterm_while_a_reward_hangs_leaves_the_last_boundary(monkeypatch, tmp_path):
    (tmp_path / "hanging.py").write_text(HANGING)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    # It would hang for an hour, and the run is given three minutes to end.
    stuck = tmp_path / "stuck"
    folder = interrupted(tmp_path / "a", RUN, signal.SIGTERM, lambda _: stuck.exists())
    assert [row["iteration"] for row in rows(folder)] == ["1", "2"]
    assert [path.name for path in (folder / "checkpoints").iterdir()] == ["iteration-000002.ckpt"]
    (tmp_path / "freed").touch()
    resume(folder)
    assert [row["iteration"] for row in rows(folder)] == ["1", "2", "3", "4"]
