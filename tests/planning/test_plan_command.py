"""`python -m tpg.plan`: what it prints, how it ends, and that nothing is loaded."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

import tpg.plan
from tpg.policies.base import PolicyOptions

TINY = ("policy=tiny", "task=sort", "reward_model=[sorted_digits]", "trainer=cpu", "trainer.precision=32-true")
NO_GPU = "error: plan.device_memory: there is no GPU here to ask; give one's memory in GB, e.g. 80"
RATES = ("plan.matmul_tflops=1", "plan.bandwidth=10")


@pytest.fixture
def plan(entry, monkeypatch):
    monkeypatch.setattr(PolicyOptions, "load", lambda *_: pytest.fail("a policy is loaded"))
    return lambda *arguments: entry(tpg.plan, *TINY, *arguments)


def test_a_run_that_fits_ends_with_0(plan, tmp_path):
    code, out, err = plan(*RATES, "plan.device_memory=8")
    assert (code, err) == (0, [])
    assert out.splitlines()[-1].startswith("fits: needs ")
    assert "policy weights" in out
    assert "generation 29%, update 52%" in " ".join(out.split())
    assert list(tmp_path.iterdir()) == []


def test_a_run_that_does_not_fit_ends_with_1_and_one_line(plan):
    code, out, err = plan(*RATES, "plan.device_memory=0.7", "rollout.batch_responses=128")
    assert code == 1
    (line,) = err
    assert line.startswith("does not fit: needs ")
    assert "may take 0.63 GB of 0.70 GB (10% stay free)" in line
    assert "overrides to paste" in out


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["plan.device_memory=-1"], "error: plan.device_memory=-1: should be greater than 0"),
        (["plan.device=cuda"], NO_GPU),
        (["trainer.devices=2"], "error: trainer.devices=2: one is what trainer=auto|cpu|gpu uses; add trainer=ddp"),
    ],
    ids=["range", "no-gpu", "division"],
)
def test_a_mistake_is_told_in_one_line(plan, monkeypatch, arguments, told):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    code, out, err = plan(*arguments)
    assert (code, out, err) == (2, "", [told])


def test_a_gpu_that_is_not_here_is_planned_for(plan, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    code, out, _ = plan("trainer=fsdp", "trainer.devices=4", "plan.device=cuda", "plan.device_memory=80")
    assert code == 0
    assert "4 devices: 4 data-parallel, sharded, cuda" in out
    assert "tokens/s: unknown; no cuda to measure here" in out


def test_a_run_that_began_is_planned_as_it_would_go_on(plan, entry, tmp_path):
    import tpg.train

    _, config, _ = entry(tpg.train, *TINY, "policy.layers=2", "--cfg", "job", "--resolve")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text(config)
    machine = ["trainer=ddp", *RATES, "plan.device_memory=8"]
    code, out, err = entry(tpg.plan, f"resume={tmp_path}/run", *machine)
    assert (code, err) == (0, [])
    assert out.startswith("Tiny on 2 devices: 2 data-parallel, replicated, cpu, 32-true; ")
    assert out == plan("policy.layers=2", *machine)[1] != plan("policy.layers=3", *machine)[1]
    code, out, err = entry(tpg.plan, f"resume={tmp_path}/run", "seed=3")
    assert (code, out) == (2, "")
    assert err[0].startswith("error: seed: resume continues with the run's own config; ")


@pytest.mark.long
@pytest.mark.parametrize(
    ("overrides", "least", "most"),
    [
        (["experiment=sort", "warm_start=none"], 0.5, 2.0),
        (["experiment=quickstart", "rollout.max_response_tokens=32"], 0.5, 2.0),
    ],
    ids=["tiny", "smollm2"],
)
def test_the_estimate_is_near_what_a_run_takes(overrides, least, most):
    script = Path(__file__).with_name("peak.py")
    given = ["trainer=cpu", "trainer.precision=bf16-mixed", *overrides]
    done = subprocess.run([sys.executable, str(script), *given], capture_output=True, text=True, timeout=550)
    assert done.returncode == 0, done.stderr
    assert least < json.loads(done.stdout.splitlines()[-1])["ratio"] < most
