"""What `python -m tpg.sweep` refuses, in one line and before anything is made; ready definitions are not refused."""

import re

import pytest
from searches import SEEDS, TINY, definition

from tpg.jobs.searches import DEFINITIONS

MISTAKES = {
    "task=sort": "sweep: name a definition, sweep=...; there are clip_ranges, estimators, lr_kl_group, or give ...",
    "sweep=nope": "sweep=nope: no such option; there are clip_ranges, estimators, lr_kl_group",
    "sweep=nope.yaml": "sweep=nope.yaml: No such file or directory",
    "sweep=mine.yaml -m": "-m: a sweep runs many jobs already; use sweep.jobs=4 for several at a time",
    "sweep=mine.yaml resume=there": "resume: the same command continues a sweep; leave resume= out",
    "sweep=mine.yaml seed=3": "seed: the sweep varies it; leave it out, or take it out of sweep.parameters",
    "sweep=mine.yaml sweep.trials=0": "sweep.trials=0: should be greater than or equal to 1",
    "sweep=mine.yaml sweep.trails=9": "sweep.trails: no such key; sweep has ...; did you mean trials...?",
    "sweep=mine.yaml sweep/sampler=tpf": "sweep/sampler=tpf: no such option; there are cmaes, grid, random, tpe; ...",
    "sweep=mine.yaml sweep.sampler.seeds=1": "sweep.sampler.seeds: no such key; sweep.sampler has ...",
    "sweep=mine.yaml evaluation.every=0": "sweep.objectives.eval/reward: evaluation.every=0 measures no eval/reward",
    "sweep=mine.yaml iterations=0": "sweep.parameters (seed=0) of sweep=mine: iterations=0: should be greater than ...",
    "sweep=mine.yaml optimizer.lrr=1": "optimizer.lrr: no such key; optimizer has ...; did you mean lr?",
}
DEFINITIONS_AT_FAULT = {
    'seed: {type: categorical, values: [0, "one"]}': "sweep.parameters.seed of sweep=mine: seed=one: should be ...",
    "optimizer.lr: {type: float, low: -1.0, high: 1.0}": (
        "sweep.parameters.optimizer.lr of sweep=mine: optimizer.lr=-1.0: should be greater than 0"
    ),
    "estimator: {type: categorical, values: [rloo, grop]}": (
        "sweep.parameters.estimator of sweep=mine: estimator=grop: no such option; there are ...; did you mean grpo...?"
    ),
    "optimizer.lrr: {type: float, low: 0.1, high: 1.0}": (
        "sweep.parameters.optimizer.lrr of sweep=mine: optimizer.lrr: no such key; optimizer has ...; did you mean lr?"
    ),
    "rollout.responses_per_prompt: {type: int, low: 1, high: 4}": (
        "sweep.parameters.rollout.responses_per_prompt of sweep=mine: rollout.responses_per_prompt=1: ..."
    ),
    "optimizer.lr: {type: float, low: 1.0, high: 0.1}": (
        "sweep.parameters.optimizer.lr.low=1: should be less than high=0.1"
    ),
    "optimizer.lr: {type: flaot, low: 0.1, high: 1.0}": (
        "sweep.parameters.optimizer.lr.type=flaot: no such type; there are float, int, categorical; did you mean float?"
    ),
    "optimizer.lr: {type: float, low: 0.1}": "sweep.parameters.optimizer.lr.high: has no value and needs one; ...",
    "optimizer.lr: {type: float, low: 0.1, hihg: 1.0}": (
        "sweep.parameters.optimizer.lr.hihg: no such key; Float has low, high, log, points; did you mean high?"
    ),
    "optimizer.lr: {type: float, low: small, high: 1.0}": (
        "sweep.parameters.optimizer.lr.low=small: should be a valid number, ..."
    ),
    "optimizer: {lr: {type: float, low: 0.1, high: 1.0}}": (
        "sweep.parameters.optimizer: has no type; give type: float, int, categorical (give the whole key at once, ..."
    ),
    "optimizer.lr: [0.1, 1.0]": "sweep.parameters.optimizer.lr=[0.1, 1.0]: expected a range, e.g. ...",
}


def matches(told, expected):
    assert re.fullmatch(".*".join(re.escape(part) for part in f"error: {expected}".split("...")), told), told


@pytest.mark.parametrize("command", MISTAKES, ids=str)
def test_a_mistake_ends_in_one_line_before_anything_is_made(run, tmp_path, command):
    definition(SEEDS)
    code, out, err = run(*command.split(), *(word for word in TINY if word.split("=")[0] not in command))
    assert (code, out, len(err)) == (2, "", 1), err
    matches(err[0], MISTAKES[command])
    assert [path.name for path in tmp_path.iterdir()] == ["mine.yaml"]


@pytest.mark.parametrize("parameter", DEFINITIONS_AT_FAULT, ids=str)
def test_a_definition_at_fault_is_told_by_its_key(run, tmp_path, parameter):
    definition(parameter)
    key = parameter.split(":")[0]
    code, out, err = run("sweep=mine.yaml", *(word for word in TINY if word.split("=")[0] != key))
    assert (code, out, len(err)) == (2, "", 1), err
    matches(err[0], DEFINITIONS_AT_FAULT[parameter])
    assert [path.name for path in tmp_path.iterdir()] == ["mine.yaml"]


@pytest.mark.parametrize(
    ("keys", "told"),
    [
        (
            {"objectives": {"eval/reward": "maximize", "num_tokens": "minimize"}},
            "sweep/pruner: trials are judged early by one objective only; use sweep/pruner=none",
        ),
        (
            {"objectives": {"eval/reward": "maximise"}},
            "sweep.objectives.eval/reward=maximise: should be 'maximize' ...",
        ),
        (
            {"objectives": {"eval/rewrad": "maximize"}},
            "sweep.objectives.eval/rewrad=eval/rewrad: ...; did you mean ...",
        ),
        ({"parameters": {}}, "sweep.parameters: is empty; name what is varied, e.g. optimizer.lr"),
    ],
)
def test_a_definition_that_asks_for_what_there_is_not(run, keys, told):
    definition(*([] if "parameters" in keys else [SEEDS]), **{k: v for k, v in keys.items() if k != "parameters"})
    code, _, err = run("sweep=mine.yaml", *TINY)
    assert (code, len(err)) == (2, 1), err
    matches(err[0], told)


def test_a_folder_of_options_needs_the_package_line(run, tmp_path):
    definition(SEEDS, head="# no package")
    (tmp_path / "own" / "sweep").mkdir(parents=True)
    (tmp_path / "mine.yaml").rename(tmp_path / "own" / "sweep" / "mine.yaml")
    code, _, err = run("--config-dir=own", "sweep=mine", *TINY)
    assert code == 2
    assert err == ["error: sweep.sweep: no such key; begin the definition's file with the line '# @package _global_'"]


def test_a_folder_of_options_holds_definitions_too(run, imagined, tmp_path):
    definition(SEEDS)
    (tmp_path / "own" / "sweep").mkdir(parents=True)
    (tmp_path / "mine.yaml").rename(tmp_path / "own" / "sweep" / "mine.yaml")
    assert run("--config-dir=own", "sweep=mine", *TINY, "sweep/sampler=grid")[0] == 0
    assert [seed for seed, _ in imagined.asked] == [0, 1, 2]


READY = {
    "lr_kl_group": (12, 40),
    "estimators": (16, 24),
    "clip_ranges": (8, 40),
}


def test_every_ready_definition_is_listed():
    assert {file.stem for file in DEFINITIONS.glob("*.yaml")} == set(READY)


@pytest.mark.parametrize("name", READY)
def test_a_ready_definition_composes_in_every_corner(run, imagined, monkeypatch, name):
    """Its corners are checked as the command checks them, on the default experiment; no trial is run."""
    monkeypatch.setattr("tpg.searching.study.next_trial", lambda study, sweep: None)
    corners, trials = READY[name]
    _, out, err = run(f"sweep={name}")
    assert f"at most {trials} trials in outputs/sweep/{name} ({corners} corners checked)" in out, err
    assert err == [
        f"error: sweep: no trial finished; see outputs/sweep/{name}/trials.csv and outputs/sweep/{name}/logs"
    ]
