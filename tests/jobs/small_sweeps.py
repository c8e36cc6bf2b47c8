"""Sweeps of small runs, for tests."""

import re

TINY = [
    *["policy=tiny", "policy.hidden_size=32", "policy.layers=2", "task=sort", "logger=[csv]", "trainer=cpu"],
    *["reward_model=[sorted_digits,length]", "reward_model.length.target_tokens=6", "reward_workers=1"],
    *["rollout.prompts=4", "rollout.responses_per_prompt=4", "rollout.max_response_tokens=10"],
    *["rollout.max_prompt_tokens=32", "optimizer.lr=1e-3", "evaluation.prompts=8", "checkpoint.every=1"],
]
FOUR = ["algorithm=grpo,rloo", "seed=range(0,2)", "iterations=2"]
JOBS = ["algorithm_grpo-seed_0", "algorithm_grpo-seed_1", "algorithm_rloo-seed_0", "algorithm_rloo-seed_1"]


def table(out):
    """The cells of a sweep's closing table by job: number, overrides, reward, seconds, state, folder."""
    lines = out[out.index("\nsweep ") :].splitlines()[3:]
    return [re.split(r"\s{2,}", line.strip()) for line in lines]
