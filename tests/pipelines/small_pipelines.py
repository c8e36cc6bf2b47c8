"""A pipeline of three small stages that train and one that evaluates, for tests."""

from pathlib import Path

import yaml

COMMON = [
    "task=sort",
    "reward_model=[regex]",
    "reward_model.regex.pattern='[0-9]'",  # about every other random response has one
    "trainer=cpu",
    "trainer.precision=32-true",
    "reward_workers=1",
    "rollout.max_response_tokens=8",
    "rollout.max_prompt_tokens=32",
    "evaluation.prompts=4",
]
TRAINED = [
    *COMMON,
    "logger=[csv]",
    "rollout.prompts=2",
    "rollout.responses_per_prompt=4",
    "optimizer.lr=1e-2",
    "iterations=2",
    "checkpoint.every=1",
]
TINY = ["policy=tiny", "policy.hidden_size=16", "policy.layers=1"]
STAGES = {
    "first": {"entry": "train", "overrides": [*TINY, *TRAINED, "seed=${seed}"]},
    "apart": {"entry": "train", "overrides": [*TINY, *TRAINED]},
    "second": {"entry": "train", "overrides": ["policy=huggingface", "policy.path=${stage:first}/policy", *TRAINED]},
    "judged": {"entry": "evaluate", "overrides": ["run=${stage:second}", "samples=1"]},
}


def declared(folder: Path) -> list[str]:
    """The arguments that choose it, once its file is written below this folder."""
    place = folder / "own" / "pipeline"
    place.mkdir(parents=True, exist_ok=True)
    (place / "small.yaml").write_text(yaml.safe_dump({"stages": STAGES}, sort_keys=False))
    return ["--config-dir", str(folder / "own"), "pipeline=small"]
