"""A run that waits for rewards is stopped by a signal, and leaves the boundary before them."""

import signal

from processes import TINY, has_rows, interrupted, resume, rows

HANGING = """
import time
from pathlib import Path

def length(response, prompt):
    stuck = Path(__file__).with_name("stuck")
    if stuck.exists():
        stuck.write_text("yes")
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
    stuck = tmp_path / "stuck"

    def hangs(folder):
        if has_rows(2)(folder) and not stuck.exists():
            stuck.touch()
        return stuck.exists() and stuck.read_text() == "yes"

    # It would hang for an hour, and the run is given three minutes to end.
    folder = interrupted(tmp_path / "a", RUN, signal.SIGTERM, hangs)
    done = len(rows(folder))
    assert 2 <= done < 4
    assert [path.name for path in (folder / "checkpoints").iterdir()] == [f"iteration-{done:06d}.ckpt"]
    stuck.unlink()
    resume(folder)
    assert [row["iteration"] for row in rows(folder)] == ["1", "2", "3", "4"]
