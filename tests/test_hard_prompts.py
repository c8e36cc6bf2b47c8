"""The hard experiments of curricula: what they say they learn, they learn, and the plain method does not."""

import json
import subprocess
import sys

import pytest


def learned(folder, experiment, *overrides):
    """Held-out success before and after."""
    command = [sys.executable, "-m", "tpg.train", f"experiment=hard/{experiment}", "logger=[csv]", "trainer=cpu"]
    subprocess.run([*command, f"run_dir={folder}", *overrides], check=True, capture_output=True, text=True)
    head, first = (line.split(",") for line in (folder / "metrics.csv").read_text().splitlines()[:2])
    before = float(dict(zip(head, first, strict=True))["eval/pass@1"])
    return before, json.loads((folder / "summary.json").read_text())["eval/pass@1"]


@pytest.mark.long
@pytest.mark.timeout(1200)
def test_hints_find_what_the_plain_method_does_not(tmp_path):
    before, after = learned(tmp_path / "hints", "ghpo")
    same, plain = learned(tmp_path / "plain", "ghpo", "curriculum=none")
    assert before == same < 0.01
    assert after - plain > 0.25
