"""Folders as runs leave them, from literal numbers."""

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml


def config(seed: int = 0, **changed: Any) -> dict[str, Any]:
    """A run's config; `a__b=1` stands for `{a: {b: 1}}`."""
    made: dict[str, Any] = {
        "seed": seed,
        "iterations": 4,
        "policy": {"_target_": "tpg.policies.tiny.Tiny", "layers": 2},
        "task": {"_target_": "tpg.tasks.sort.Sort", "digits": 6},
        "estimator": {"_target_": "tpg.estimators.rloo.RLOO"},
        "rollout": {"_target_": "tpg.rollouts.transformers.Transformers", "prompts": 4},
        "optimizer": {"lr": 1e-05},
        "choices": {"policy": "tiny", "task": "sort", "estimator": "rloo", "algorithm": "rloo"},
        "run_id": f"id{seed}",
    }
    for key, value in changed.items():
        *groups, last = key.split("__")
        node = made
        for group in groups:
            node = node.setdefault(group, {})
        node[last] = value
    return made


def grpo(seed: int = 0, **changed: Any) -> dict[str, Any]:
    """The config of a run of another algorithm."""
    estimator = {"_target_": "tpg.estimators.group.GRPO", "epsilon": 1e-6, "std": "group"}
    chosen = {"choices__estimator": "grpo", "choices__algorithm": "grpo"}
    return config(seed, estimator=estimator, **(chosen | changed))


def rows(rewards: Sequence[float], tokens: int = 100, **columns: Sequence[Any]) -> list[dict[str, Any]]:
    """A row a reward; each iteration takes 2 seconds and so many tokens."""
    return [
        {
            "iteration": i + 1,
            "reward": reward,
            "num_tokens": tokens * (i + 1),
            "step_time": 2.0,
            "completions/unscored": 0,
            **{name: values[i] for name, values in columns.items()},
        }
        for i, reward in enumerate(rewards)
    ]


def completion(reward: float | None, response: str, iteration: int = 4, **changed: Any) -> dict[str, Any]:
    """A line of completions.jsonl."""
    record = {
        **{"iteration": iteration, "row": 0, "draw": 0, "prompt": "sort 321:", "response": response, "answer": "123"},
        **{"reward": reward, "rewards": {"sorted_digits": reward}, "weight": 0.5, "tokens": 3, "finish": "stop"},
    }
    return record | changed


def make_run(
    folder: Path,
    config: dict[str, Any],
    rows: Sequence[dict[str, Any]],
    completions: Sequence[dict[str, Any]] = (),
    final: float | None = None,
    finished: bool = True,
) -> Path:
    """A run's folder; `final` is the last policy's held-out reward."""
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    if rows:
        with (folder / "metrics.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    if completions:
        lines = (json.dumps(each, ensure_ascii=False) + "\n" for each in completions)
        (folder / "completions.jsonl").write_text("".join(lines), encoding="utf-8")
    if finished:
        evaluated = {} if final is None else {"eval/reward": final}
        summary = {"iterations": len(rows), "reward/last": rows[-1]["reward"], **evaluated}
        (folder / "summary.json").write_text(json.dumps(summary))
    return folder
