"""A pipeline that goes on finds the user's own options, and runs a stage again whose code has changed."""

import shutil

import pytest
import yaml
from omegaconf import OmegaConf
from small_pipelines import TINY, TRAINED

from tpg.pipelines import running

REWARD = "def score(prompt, response):\n    return float(len(response) > {least})\n"


@pytest.fixture
def own(tmp_path):
    """A folder of the user's with a pipeline of one stage, an optimizer and, beside it, a reward function."""
    folder = tmp_path / "own"
    for group in ("pipeline", "optimizer"):
        (folder / group).mkdir(parents=True)
    words = [*TINY, *TRAINED, "iterations=1", "optimizer=gentle", "reward_model=[function]"]
    words = [
        word for word in words if not word.startswith(("optimizer.lr", "reward_model.regex", "reward_model=[regex"))
    ]
    stages = {"only": {"entry": "train", "overrides": [*words, "reward_model.function.function=scores:score"]}}
    (folder / "pipeline" / "small.yaml").write_text(yaml.safe_dump({"stages": stages}))
    (folder / "optimizer" / "gentle.yaml").write_text("defaults:\n  - adamw\nlr: 0.0625\n")
    (tmp_path / "scores.py").write_text(REWARD.format(least=1))
    return folder


def test_the_users_own_options_are_found_when_it_goes_on(in_process, own, tmp_path, monkeypatch):
    run, here = tmp_path / "run", in_process.here
    monkeypatch.setattr(running, "run_stage", lambda *_: 7)
    given = ["--config-dir", str(own), "pipeline=small", "run_dir=run"]
    assert in_process(*given)[:2] == (7, [])
    monkeypatch.setattr(running, "run_stage", here)
    code, begun, _, err = in_process("resume=run")
    assert (code, begun, err) == (0, ["only"], [])
    assert OmegaConf.load(run / "only" / "config.yaml").optimizer.lr == 0.0625
    assert in_process("resume=run")[1] == []

    (own / "optimizer" / "gentle.yaml").write_text("defaults:\n  - adamw\nlr: 0.125\n")
    code, begun, out, _ = in_process("resume=run")
    assert (code, begun) == (0, ["only"])
    assert "optimizer.lr is 0.125 and was 0.0625" in out

    shutil.move(own, tmp_path / "moved")
    code, _, _, err = in_process("resume=run")
    assert (code, len(err)) == (2, 1)
    assert err[0].startswith("error: only: optimizer=gentle: no such option")
    assert in_process("resume=run", "--config-dir", str(tmp_path / "moved"))[:2] == (0, [])
    assert in_process("resume=run")[:2] == (0, [])


def test_a_stage_runs_again_whose_reward_function_was_edited(in_process, own, tmp_path):
    given = ["--config-dir", str(own), "pipeline=small", "run_dir=run"]
    assert in_process(*given)[:2] == (0, ["only"])
    (tmp_path / "scores.py").write_text(REWARD.format(least=2))
    code, begun, out, _ = in_process(*given)
    assert (code, begun) == (0, ["only"])
    assert "reward_model.function.function=scores:score is another" in out
