"""Ready W&B sweeps: their form, and that every draw of their parameters is a run."""

import importlib.util
import itertools
import json
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import wandb.wandb_agent
import yaml
from hydra import compose, initialize_config_dir
from hydra.types import RunMode
from omegaconf import OmegaConf

from tpg.composition import to_experiment
from tpg.jobs.configs import own_config

ROOT = Path(__file__).parents[1]
SWEEPS = sorted((ROOT / "sweeps" / "wandb").glob("*.yaml"))
KEYS = {"program", "project", "name", "method", "run_cap", "metric", "early_terminate", "command", "parameters"}
FORMS = (
    {"value"},
    {"values"},
    {"min", "max", "distribution"},
)
"""The keys of a parameter: what is drawn from a list, a range, or is one value."""
LOGGED = {"eval/reward", "rewards/last_number/mean"}
"""Metrics that a sweep may follow; the tests of loggers see that a run has them."""


@pytest.fixture(params=SWEEPS, ids=lambda path: path.stem)
def sweep(request):
    return yaml.safe_load(request.param.read_text())


def complaints(sweep):
    """What W&B's own schema, or its client, would refuse, and what only fails once a run is started."""
    for key in set(sweep) - KEYS:
        yield f"{key}: unknown"
    for key in {"program", "method", "metric", "command", "parameters"} - set(sweep):
        yield f"{key}: missing"
    if sweep["method"] not in ("grid", "random", "bayes"):
        yield f"method={sweep['method']}"
    if sweep["metric"].get("goal") not in ("maximize", "minimize"):
        yield "metric.goal"
    if sweep["metric"].get("name") not in LOGGED:
        yield f"metric.name={sweep['metric'].get('name')}: not logged"
    if "${args_no_hyphens}" not in sweep["command"]:
        yield "command: without ${args_no_hyphens} no parameter arrives"
    for name, parameter in sweep["parameters"].items():
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_.-]*", name):
            yield f"parameters.{name}: not a name"
        if set(parameter) not in FORMS:
            yield f"parameters.{name}: {sorted(parameter)}"
        if sweep["method"] == "grid" and "min" in parameter:
            yield f"parameters.{name}: a grid has no ranges"
        for bound in ("min", "max"):
            if not isinstance(parameter.get(bound, 0.0), int | float):
                yield f"parameters.{name}.{bound}={parameter[bound]}: a string; write 1.0e-5"
        for value in [*parameter.get("values", []), parameter.get("value", 0)]:
            if not isinstance(value, int | float) and not re.fullmatch(r"[\w./-]+", str(value)):
                yield f"parameters.{name}: {value!r} does not survive the command line"
            if value is None or (isinstance(value, str) and re.fullmatch(r"[\d.]+e-?\d+", value)):
                yield f"parameters.{name}: {value!r} arrives as a string"
    stop = sweep.get("early_terminate")
    if stop and not (stop.get("type") == "hyperband" and ("min_iter" in stop or {"max_iter", "s"} <= set(stop))):
        yield "early_terminate"


def draws(parameters):
    """Every combination of the ends of ranges and the first and last of lists, as the agent gets them."""
    ends = {
        name: [parameter["value"]]
        if "value" in parameter
        else parameter["values"]
        if "values" in parameter
        else [parameter["min"], parameter["max"]]
        for name, parameter in parameters.items()
    }
    return [dict(zip(ends, values, strict=True)) for values in itertools.product(*ends.values())]


def command_line(sweep, values, monkeypatch, folder):
    """What W&B's own agent would start for these values."""
    started = []
    agent = wandb.wandb_agent.Agent.__new__(wandb.wandb_agent.Agent)
    agent._sweep_command = list(sweep["command"])
    agent._function, agent._in_jupyter, agent._forward_signals, agent._run_processes = None, False, False, {}
    monkeypatch.setenv("WANDB_DIR", str(folder))
    monkeypatch.setenv("WANDB_SWEEP_ID", "swp12345")
    monkeypatch.setenv("WANDB_RUN_ID", "before00")
    monkeypatch.setattr(wandb.wandb_agent, "AgentProcess", lambda **given: started.append(given) or SimpleNamespace())
    agent._command_run(
        {
            "run_id": "abcd1234",
            "program": sweep["program"],
            "args": {name: {"value": value} for name, value in values.items()},
        }
    )
    return started[0]["command"], started[0]["env"]


def composed(overrides):
    with initialize_config_dir(version_base="1.3", config_dir=str(ROOT / "conf")):
        return compose("train", overrides=overrides)


def test_there_is_one_for_each_common_question():
    assert [path.stem for path in SWEEPS] == [
        *("clip_ranges", "estimators", "lr_kl_group", "reward_weights", "rollout_budget"),
    ]
    methods = {yaml.safe_load(path.read_text())["method"] for path in SWEEPS}
    assert methods == {"grid", "random", "bayes"}


def test_a_definition_is_one_that_wandb_takes(sweep):
    assert list(complaints(sweep)) == []


@pytest.mark.skipif(
    not (importlib.util.find_spec("sweeps") and importlib.util.find_spec("jsonschema")),
    reason="needs W&B's package sweeps (pip install --no-deps sweeps) and jsonschema",
)
def test_a_definition_fits_wandbs_own_schema(sweep):
    import jsonschema

    (package,) = importlib.util.find_spec("sweeps").submodule_search_locations
    schema = json.loads((Path(package) / "config" / "schema.json").read_text())
    jsonschema.Draft7Validator.check_schema(schema)
    assert [error.message for error in jsonschema.Draft7Validator(schema).iter_errors(sweep)] == []
    wrong = {**sweep, "parameters": {"optimizer.lr": {"min": "1e-5", "max": 1.0, "distribution": "uniform"}}}
    assert list(jsonschema.Draft7Validator(schema).iter_errors(wrong))


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("method", "bayse", "method=bayse"),
        ("metric", {"name": "eval/rewards", "goal": "maximize"}, "metric.name=eval/rewards: not logged"),
        ("command", ["${args}"], "command: without ${args_no_hyphens} no parameter arrives"),
        ("parameters", {"seed": {"min": "1e-5", "max": 1.0, "distribution": "uniform"}}, "parameters.seed.min=1e-5: a"),
        ("parameters", {"objective.dual_clip": {"values": [None]}}, "parameters.objective.dual_clip: None arrives as"),
        ("parameters", {"policy": {"value": "{a: 1}"}}, "parameters.policy: '{a: 1}' does not survive"),
        ("early_terminate", {"type": "hyperband"}, "early_terminate"),
    ],
)
def test_mistakes_that_people_make_are_seen(key, value, expected):
    sweep = {**yaml.safe_load(SWEEPS[2].read_text()), key: value}
    assert any(complaint.startswith(expected) for complaint in complaints(sweep)), list(complaints(sweep))


def test_every_draw_is_an_experiment_of_its_own(sweep, monkeypatch, tmp_path):
    corners = draws(sweep["parameters"])
    seen = []
    for values in (corners[0], corners[len(corners) // 2], corners[-1]):
        command, environment = command_line(sweep, values, monkeypatch, tmp_path)
        assert command[:4] == ["/usr/bin/env", "python", "-m", "tpg.train"]
        assert not any("${args" in word or "${env" in word for word in command)
        assert environment["WANDB_RUN_ID"] == "abcd1234"
        config = composed(command[4:])
        assert config.run_dir == "outputs/wandb-swp12345/abcd1234"
        experiment = to_experiment(
            OmegaConf.create({key: value for key, value in config.items() if key not in ("run_dir", "resume")})
        )
        experiment.check()
        assert list(experiment.logger) == ["wandb"]
        for name, value in values.items():
            if name not in ("estimator", "experiment"):
                assert OmegaConf.select(config, name) == pytest.approx(value)
        seen.append(experiment)
    assert seen[0] != seen[1] != seen[2]
    metric = sweep["metric"]["name"]
    if metric.startswith("eval/"):
        evaluations = seen[0].iterations // seen[0].evaluation.every
        assert evaluations >= 4 * sweep.get("early_terminate", {"min_iter": 1})["min_iter"]
    else:
        assert metric.split("/")[1] in seen[0].reward_model
        assert seen[0].iterations > sweep["early_terminate"]["min_iter"]


def test_the_budgets_are_equal():
    sweep = yaml.safe_load((ROOT / "sweeps/wandb/rollout_budget.yaml").read_text())
    budgets = {}
    for name in sweep["parameters"]["experiment"]["values"]:
        rollout = composed([f"experiment={name}"]).rollout
        budgets[name] = (rollout.prompts, rollout.responses_per_prompt)
    assert budgets == {
        "budget/16x32": (16, 32),
        "budget/32x16": (32, 16),
        "budget/64x8": (64, 8),
        "budget/128x4": (128, 4),
        "budget/256x2": (256, 2),
    }
    assert {prompts * responses for prompts, responses in budgets.values()} == {512}


def test_a_run_of_a_sweep_keeps_the_name_that_the_agent_gave_it(monkeypatch):
    hydra = SimpleNamespace(mode=RunMode.RUN, runtime=SimpleNamespace(choices={}))
    monkeypatch.setenv("WANDB_RUN_ID", "abcd1234")
    monkeypatch.delenv("WANDB_SWEEP_ID", raising=False)
    assert own_config(composed([]), hydra)["run_id"] != "abcd1234"
    monkeypatch.setenv("WANDB_SWEEP_ID", "swp12345")
    assert own_config(composed([]), hydra)["run_id"] == "abcd1234"
