"""`python -m tpg.audit`: what it prints and leaves, and what it refuses."""

import json
import re
import subprocess
import sys
from functools import partial

import pytest

import tpg.audit.__main__
import tpg.train

QUICK = ["logger=[]", "audit.worlds=3", "audit.horizon=2", "kl=none", "aggregation=sequence_sum"]
KEYS = {
    "estimator", "objective", "aggregation", "kl", "relative_bias", "scale", "cosine", "trace_covariance",
    "generated_tokens", "noise_per_token", "noise_per_update", "verdict", "causes",
}  # fmt: skip


@pytest.fixture
def run(entry):
    """The audit in this process."""
    return partial(entry, tpg.audit.__main__)


def test_a_process(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "tpg.audit", "algorithm=grpo", "audit.estimators=[rloo,grpo]", "run_dir=it", *QUICK],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert sorted(path.name for path in (tmp_path / "it").iterdir()) == ["audit.json", "audit.png"]
    assert (tmp_path / "it" / "audit.png").read_bytes().startswith(b"\x89PNG")
    rloo, grpo = json.loads((tmp_path / "it" / "audit.json").read_text())
    assert rloo.keys() >= KEYS
    assert (rloo["estimator"], rloo["verdict"], rloo["causes"]) == ("rloo", "exact", [])
    assert (rloo["objective"], rloo["aggregation"], rloo["kl"]) == ("ppo_clip", "sequence_sum", "none")
    assert rloo["relative_bias"] < 1e-12
    assert rloo["generated_tokens"] == pytest.approx(4)
    # Noise to signal where the mean is the true gradient: the trace over its square, whatever that is.
    assert rloo["noise_per_token"] == pytest.approx(2 * rloo["noise_per_update"])
    assert [cause["name"] for cause in grpo["causes"]] == ["std normalisation", "self-inclusion"]
    assert grpo["causes"][-1]["relative_bias"] < 1e-12
    assert "because of std normalisation and self-inclusion" in " ".join(re.split(r"[\s│]+", done.stdout))
    assert "audit  it/audit.json  it/audit.png" in done.stdout


def test_the_configs_own_estimator_and_a_second_run(run, tmp_path):
    code, out, err = run("algorithm=rloo", "run_dir=it", *QUICK)
    assert (code, err) == (0, [])
    assert "exact" in out
    before = (tmp_path / "it" / "audit.json").read_text()
    code, out, err = run("algorithm=rloo", "run_dir=it", *QUICK)
    assert (code, out, len(err)) == (2, "", 1)
    assert err[0].startswith("error: run_dir=")
    assert "is not empty" in err[0]
    assert (tmp_path / "it" / "audit.json").read_text() == before


def test_a_key_that_is_varied(run, tmp_path):
    code, _, err = run("algorithm=rloo", "run_dir=it", "audit.vary={off_policy:[0,0.3]}", *QUICK)
    assert (code, err) == (0, [])
    on, off = json.loads((tmp_path / "it" / "audit.json").read_text())
    assert (on["varied"], on["verdict"]) == ({"off_policy": 0}, "exact")
    assert off["varied"] == {"off_policy": 0.3}
    assert off["verdict"].startswith("biased")


def test_all_estimators_that_go_with_the_config(run, tmp_path):
    quick = ["logger=[]", "audit.worlds=1", "audit.horizon=1", "audit.vocabulary=2", "kl=none", "run_dir=it"]
    code, _, err = run("algorithm=grpo", "audit.estimators=all", *quick)
    assert code == 0
    assert [line.split(":")[0] for line in err] == [
        "note",
        "note",
    ]
    assert err[0].startswith("note: gae is left out: ")
    assert err[1].startswith("note: segment_delimiter is left out: ")
    names = [row["estimator"] for row in json.loads((tmp_path / "it" / "audit.json").read_text())]
    assert names[0] == "grpo"
    assert {"rloo", "segment", "trepo_interpolate", "otb", "remax", "reinforce_pp"} <= set(names)
    assert not {"gae", "segment_delimiter"} & set(names)


REFUSED = {
    "audit.estimators=[grop]": "audit.estimators=grop: no such option; there are ...; did you mean grpo?",
    "audit.estimators=[rloo,gae]": "...GAE reads a critic's values; ...",
    "algorithm=grpo audit.responses_per_prompt=1": "audit.responses_per_prompt=1: GRPO ... needs at least 2",
    "audit.worlds2=3": "audit.worlds2: no such key; audit has ...; did you mean worlds?",
    "audit.worlds=0": "audit.worlds=0: should be greater than or equal to 1",
    "audit.vocabulary=1": "audit.vocabulary=1: should be greater than or equal to 2",
    "audit.reward=densse": "audit.reward=densse: should be ...; did you mean dense?",
    "audit.reward_scales=[1,0]": "audit.reward_scales...: should be greater than 0",
    "audit.off_policy=-1": "audit.off_policy=-1: should be greater than or equal to 0",
    "audit.vocabulary=8 audit.horizon=8": "audit.vocabulary=8 audit.horizon=8 ...logits cannot be enumerated; ...",
    "audit=wrlds": "audit=wrlds: no such option; there are ...worlds; did you mean worlds?",
    "estimator=gae": "...critic=value_head...",
    "audit.vary={worldz:[1]}": "audit.vary.worldz: no such key; ...; did you mean worlds?",
    "audit.vary={horizon:[2,99]}": "audit.vary.horizon=99: ...",
    "audit.vary={horizon:[]}": "audit.vary.horizon=[]: ...",
    "audit.vary={horizon:[2],worlds:[1]}": "audit.vary=...",
    "audit.vary={horizon:[2,8]} audit.vocabulary=8": "audit.vocabulary=8 audit.horizon=8 ...; at most 2000",
    "audit.estimators=grpo": "audit.estimators=grpo: should be a list, e.g. [grpo], or all",
    "combination=gdpo algorithm=rloo": "combination: GDPO compares the responses to one ...; use audit.on=policy...",
    "audit.estimators=[]": "audit.estimators: names no estimator; ...",
}


@pytest.mark.parametrize("overrides", REFUSED)
def test_what_is_refused_is_told_in_one_line_and_leaves_nothing(overrides, run, tmp_path):
    code, out, err = run(*overrides.split(), "logger=[]")
    assert code == 2
    assert len(err) == 1, err
    expected = ".*".join(map(re.escape, ("error: " + REFUSED[overrides]).split("...")))
    assert re.fullmatch(expected, err[0]), err[0]
    assert out == ""
    assert list(tmp_path.rglob("*")) == []
