"""The shipped experiments learn what they say they learn."""

import json
import subprocess
import sys

import pytest


def trained(folder, experiment):
    command = [sys.executable, "-m", "tpg.train", f"experiment={experiment}", "logger=[csv]", f"run_dir={folder}"]
    subprocess.run(command, check=True, capture_output=True, text=True)
    rows = (folder / "metrics.csv").read_text().splitlines()
    first = dict(zip(rows[0].split(","), rows[1].split(","), strict=True))
    return float(first["eval/reward"]), json.loads((folder / "summary.json").read_text())


@pytest.mark.long
@pytest.mark.timeout(1200)
def test_sort_starts_low_and_gains_thirty_five_points_from_reward_alone(tmp_path):
    before, summary = trained(tmp_path / "run", "sort")
    assert 0.25 < before < 0.5
    assert summary["eval/reward"] > before + 0.35


@pytest.mark.long
@pytest.mark.timeout(1200)
def test_the_quickstart_model_learns_to_answer(tmp_path):
    before, summary = trained(tmp_path / "run", "quickstart")
    assert before < 0.3
    assert summary["eval/reward"] > 0.85
