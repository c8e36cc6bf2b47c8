"""Small searches for tests."""

import csv
import json

TINY = [
    "policy=tiny",
    "policy.hidden_size=16",
    "policy.layers=1",
    "task=sort",
    "reward_model=[length]",
    "reward_model.length.target_tokens=6",
    "logger=[csv]",
    "trainer=cpu",
    "reward_workers=1",
    "rollout.prompts=2",
    "rollout.responses_per_prompt=4",
    "rollout.max_response_tokens=8",
    "rollout.max_prompt_tokens=32",
    "evaluation.every=1",
    "evaluation.prompts=4",
    "iterations=2",
]
SEEDS = "seed: {type: categorical, values: [0, 1, 2]}"
LR = "optimizer.lr: {type: float, low: 1.0e-5, high: 1.0e-2, log: true}"


def definition(*parameters, head="# @package _global_", **keys):
    preset = ["defaults:", "  - override /algorithm: grpo"] if head.startswith("# @package") else []
    lines = [head, *preset, "sweep:", "  parameters:"]
    lines += [f"    {parameter}" for parameter in parameters]
    lines += [f"  {key}: {json.dumps(value)}" for key, value in keys.items()]
    with open("mine.yaml", "w") as file:
        file.write("\n".join(lines) + "\n")


def table(folder="outputs/sweep/mine"):
    with open(f"{folder}/trials.csv", newline="") as file:
        return list(csv.DictReader(file))
