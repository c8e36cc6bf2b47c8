"""What docs/rewards.md says of experiment=automaton: progress teaches what success alone does not."""

import csv
import json
import subprocess
import sys

import pytest


def trained(folder, *overrides):
    """The held-out success before, the training reward of every iteration, and the summary."""
    command = [sys.executable, "-m", "tpg.train", "experiment=automaton", "logger=[csv]", f"run_dir={folder}"]
    subprocess.run([*command, *overrides], check=True, capture_output=True, text=True)
    with (folder / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    summary = json.loads((folder / "summary.json").read_text())
    return float(rows[0]["eval/pass@1"]), [float(row["reward"]) for row in rows], summary


@pytest.mark.long
@pytest.mark.timeout(2400)
def test_progress_finds_a_way_that_success_alone_never_shows(tmp_path):
    before, rewards, summary = trained(tmp_path / "progress")
    assert before < 0.01
    assert rewards[0] < 0.1
    assert summary["eval/pass@1"] > 0.7

    before, rewards, summary = trained(tmp_path / "success", "reward_model.automaton.partial=false")
    assert before < 0.01
    assert max(rewards) < 0.01
    assert summary["eval/pass@1"] < 0.01
