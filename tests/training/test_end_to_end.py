"""Whole runs of two iterations, one of each algorithm, with what they leave behind."""

import csv
import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers
from builders import record
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from processes import TINY
from safetensors.torch import load_file

from tpg.composition import to_experiment
from tpg.policies.base import Policy
from tpg.training.preparation import prepare
from tpg.training.run import run
from tpg.training.run_folder import RunFolder

CONF = Path(__file__).parents[2] / "conf"
COLUMNS = {
    *("iteration", "reward", "reward_std", "frac_reward_zero_std", "entropy", "loss", "grad_norm", "learning_rate"),
    "update/skipped_steps",
    *("completions/mean_length", "completions/max_length", "completions/clipped_ratio", "completions/unscored"),
    *("completions/dropped", "completions/updated", "num_tokens", "step_time", "perf/throughput"),
    *(
        f"rewards/{term}/{what}"
        for term in ("sorted_digits", "length")
        for what in ("mean", "std", "unscored", "frac_unscored", "weight", "correlation", "share")
    ),
    *(f"eval/{name}" for name in ("reward", "pass@1", "mean_length", "clipped_ratio", "unscored")),
    *(f"sampling/sampling_logp_difference/{what}" for what in ("mean", "max")),
    *("mismatch/mean", "mismatch/max", "mismatch/ess", "rollout/staleness", "completions/masked"),
    *(f"curriculum/{share}" for share in ("all_solved", "none_solved", "mixed")),
    *(f"timing_s/{stage}" for stage in ("rollout", "reward", "estimate", "update", "record")),
}
CLIPPED = {"ratio", "clip_ratio/region_mean"}
CONTINUED = {"num_tokens/continuations", "continuations/unscored"}
EXTRA = {
    "cispo": CLIPPED,
    "dapo": CLIPPED,
    "dr_grpo": CLIPPED,
    "grpo": {"kl", *CLIPPED},
    "gspo": CLIPPED,
    "obl": set(),
    "opo": set(),
    "p3o": {"kl", *CLIPPED},
    "ppo": {
        *CLIPPED,
        *(f"critic/{what}" for what in ("explained_variance", "grad_norm", "loss", "value_mean", "warmup")),
    },
    "reinforce": set(),
    "reinforce_pp": {"kl", *CLIPPED},
    "remax": {"num_tokens/greedy"},
    "rl_zvp": CLIPPED,
    "rloo": set(),
    "sapo": {"ratio"},
    "trepo": {*CLIPPED, *CONTINUED},
    "vespo": {"ratio"},
    "vineppo": {*CLIPPED, *CONTINUED},
}
"""What each algorithm adds to a row."""


def trained(path, *overrides):
    """A run in this process; its folder and the policy that it left in memory."""
    with initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
        config = compose("train", overrides=[*TINY, "iterations=2", "evaluation.every=1", *overrides])
    options = OmegaConf.create({key: value for key, value in config.items() if key not in ("run_dir", "resume")})
    experiment = to_experiment(options)
    prepared = prepare(experiment)
    start = {name: weight.clone() for name, weight in prepared.policy.model.state_dict().items()}
    folder = RunFolder(path)
    folder.create(OmegaConf.to_yaml(options, resolve=True))
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        run(experiment, prepared, folder, {"run_id": "abcd1234", "seed": 0})
    finally:
        torch.set_num_threads(threads)
        for number, handler in handlers.items():
            signal.signal(number, handler)
    return folder, prepared.policy, start


@pytest.mark.parametrize("algorithm", sorted(EXTRA))
def test_an_algorithm_trains_and_leaves_a_policy_that_transformers_opens(tmp_path, algorithm):
    folder, policy, start = trained(tmp_path / "run", f"algorithm={algorithm}")
    rows = list(csv.DictReader(folder.metrics.open(newline="")))
    assert set(rows[0]) == COLUMNS | EXTRA[algorithm]
    assert [row["iteration"] for row in rows] == ["1", "2"]
    assert all(value for row in rows for value in row.values())
    assert all(float(row["grad_norm"]) > 0 for row in rows)

    saved = load_file(folder.policy / "model.safetensors")
    assert any(not torch.equal(saved[name], start[name]) for name in saved)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder.policy)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder.policy)
    batch = record([tokenizer("sort 418293:").input_ids], [[*tokenizer("123489").input_ids, 1]])
    expected = policy.statistics(batch, 1.0).logprobs
    assert torch.equal(Policy(model, tokenizer).statistics(batch, 1.0).logprobs, expected)

    completions = [json.loads(line) for line in folder.completions.open()]
    assert len(completions) == 32
    responses = sum(completion["tokens"] for completion in completions)
    generated = int(rows[-1]["num_tokens"])
    more = [int(row[key]) for row in rows for key in row if key.startswith("num_tokens/")]
    assert all(tokens > 0 for tokens in more)
    assert generated == responses + sum(more)
    for row in rows:
        rewards = [each["reward"] for each in completions if each["iteration"] == int(row["iteration"])]
        assert float(row["reward"]) == pytest.approx(sum(rewards) / 16, abs=1e-6)
    summary = json.loads(folder.summary.read_text())
    assert summary["num_tokens"] == generated
    assert folder.learning_curve.stat().st_size > 1000
    assert folder.newest_checkpoint().name == "iteration-000002.ckpt"


def test_every_algorithm_is_among_them():
    assert sorted(EXTRA) == sorted(file.stem for file in (CONF / "algorithm").glob("*.yaml"))


def test_grpos_divergence_is_zero_until_the_policy_has_moved(tmp_path):
    folder, _, _ = trained(tmp_path / "run", "algorithm=grpo")
    first, second = (float(row["kl"]) for row in folder.rows())
    assert first == pytest.approx(0.0, abs=1e-4)
    assert abs(second) > 1e-3


def test_an_offline_wandb_run_holds_every_row(tmp_path, monkeypatch):
    for name in ("WANDB_DATA_DIR", "WANDB_CACHE_DIR", "WANDB_CONFIG_DIR"):
        monkeypatch.setenv(name, str(tmp_path / name))
    monkeypatch.setenv("WANDB_MODE", "offline")
    folder, _, _ = trained(tmp_path / "run", "logger=[wandb]", "checkpoint.every=1")
    files = list(folder.path.glob("wandb/offline-run-*/run-abcd1234.wandb"))
    assert len(files) == 1
    command = [str(Path(sys.executable).with_name("wandb")), "leet", "inspect", "--json", str(files[0])]
    seen = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
    assert "frac_reward_zero_std" in seen
    assert "final/reward/last" in seen or ("final" in seen and "reward/last" in seen)
    for row in folder.rows():
        assert row["num_tokens"] in seen
        assert row["reward"][:8] in seen
    tables = list(files[0].parent.glob("files/media/table/completions*.json"))
    assert len(tables) == 2
    table = json.loads(tables[0].read_text())
    assert table["columns"] == [
        *("iteration", "prompt", "response", "reward", "rewards/sorted_digits", "rewards/length", "weight"),
    ]
    assert len(table["data"]) == 16


def test_weights_in_half_precision_leave_rewards_whole(tmp_path):
    folder, policy, _ = trained(tmp_path / "run", "trainer.precision=bf16-true", "algorithm=ppo", "optimizer.lr=0.1")
    assert policy.model.dtype == torch.bfloat16
    completions = [json.loads(line) for line in folder.completions.open()]
    terms = torch.tensor([list(each["rewards"].values()) for each in completions], dtype=torch.float64)
    assert (terms.bfloat16().double() - terms).abs().max() > 1e-4
    for row in folder.rows():
        rewards = [each["reward"] for each in completions if each["iteration"] == int(row["iteration"])]
        assert float(row["reward"]) == pytest.approx(sum(rewards) / 16, abs=1e-6)
