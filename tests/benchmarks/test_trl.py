"""Both sides with the real TRL, whose environment is made by the first run."""

import json

import pytest

from benchmarks.step import main

SMALL = ["model=tiny", "prompts=2", "responses_per_prompt=4", "prompt_tokens=5", "response_tokens=6", "threads=1"]


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_trl_does_the_same_work_and_computes_the_same_gradient(tmp_path):
    assert main([*SMALL, "repeats=1", "precision=float32", "device=cpu", f"run_dir={tmp_path}"]) == 0
    result = json.loads((tmp_path / "step.json").read_text())
    assert result["gradient_cosine"] > 1 - 1e-6
    assert set(result["gradients"]) == set(result["methods"]) == {"grpo", "rloo"}
    for compared in result["gradients"].values():
        assert compared["relative_difference"] < 1e-4
        assert len(set(compared["response_lengths"])) > 4
    assert all(result[f"ratio_{name}"] > 0 for name in ("iteration", "generate", "update", "peak_memory"))
    for record in result["methods"].values():
        assert record["trl"]["runs"][0]["work"] == record["ours"]["runs"][0]["work"]
