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
def test_curricula_find_what_the_plain_method_does_not(tmp_path):
    starts, ends = zip(*[learned(tmp_path / name, name) for name in ("plain", "ghpo", "dynamic_sampling")], strict=True)
    assert starts[0] == starts[1] == starts[2] < 0.01
    plain, hints, sampled = ends
    assert hints - plain > 0.3
    assert sampled - plain > 0.3
