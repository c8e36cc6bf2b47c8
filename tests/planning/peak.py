"""What a run really takes: `python tests/planning/peak.py OVERRIDE ...` trains in this process and prints JSON.

Peak resident memory beyond that of the libraries, beside the estimate for prompts and responses as long as they were.
"""

import json
import sys
import tempfile
from pathlib import Path

from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from transformers import AutoModelForCausalLM  # noqa: F401  is imported before what it loads is weighed

from tpg.composition import to_experiment
from tpg.jobs.configs import BOOKKEEPING, CONF
from tpg.planning.memory import memory_of
from tpg.planning.options import Plan
from tpg.planning.report import setting_of
from tpg.training.preparation import prepare
from tpg.training.run import run
from tpg.training.run_folder import RunFolder


def status(name):
    """Bytes by /proc."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


def main(overrides):
    with initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
        config = compose("train", overrides=["logger=[csv]", "iterations=2", "evaluation.every=0", *overrides])
    experiment = to_experiment(OmegaConf.masked_copy(config, [key for key in config if key not in BOOKKEEPING]))
    base = status("VmRSS")
    prepared = prepare(experiment)
    ids = prepared.training.prompts.token_ids
    prompt_tokens = round(sum(map(len, ids)) / len(ids))
    with tempfile.TemporaryDirectory() as path:
        folder = RunFolder(Path(path) / "run")
        folder.create(OmegaConf.to_yaml(config))
        run(experiment, prepared, folder, {"run_id": "peak", "choices": {}})
        rows = folder.rows()
    response_tokens = round(max(float(row["completions/mean_length"]) for row in rows))
    setting, _ = setting_of(experiment, Plan(prompt_tokens=prompt_tokens, response_tokens=response_tokens))
    memory = memory_of(setting)
    process = memory.parts[0]
    assert process.name == "process"
    found = {
        "measured": status("VmHWM") - base,
        "estimated": memory.peak - process.update,
        "libraries": base,
        "prompt_tokens": prompt_tokens,
        "response_tokens": response_tokens,
        "precision": setting.precision,
    }
    print(json.dumps(found | {"ratio": found["estimated"] / found["measured"]}))


if __name__ == "__main__":
    main(sys.argv[1:])
