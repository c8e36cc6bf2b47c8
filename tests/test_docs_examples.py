"""Every command of docs/extending.md runs in docs/examples, as far as a tiny policy and few worlds take it."""

import csv
import importlib
import json
import shutil
import sys

import pytest
from docs_commands import DOCS, call, commands

EXAMPLES = DOCS / "examples"
PAGE = DOCS / "extending.md"
SMALL = {
    "tpg.train": [
        "debug=fast", "iterations=1", "evaluation.every=0", "reward_workers=1",
        "policy.hidden_size=32", "policy.layers=2", "trainer=cpu", "run_dir=run",
    ],
    "tpg.audit": ["audit.worlds=3", "run_dir=run"],
}  # fmt: skip
"""What makes a command small; it comes after what the page has."""

VERDICTS = {
    "estimator=shrunk": "exact",
    "estimator=shrunk estimator.scaled=true": "because of scaling",
    "objective=quadratic_pull": "exact",
    "objective=quadratic_pull audit.off_policy=0.1": "because of quadratic pull and token-level ratio",
}
RUN = commands(PAGE)


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A copy of the examples as the working directory."""
    shutil.copytree(EXAMPLES, tmp_path / "examples", ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.chdir(tmp_path / "examples")
    monkeypatch.setattr(sys, "path", [str(tmp_path / "examples"), *sys.path])
    for file in EXAMPLES.glob("*.py"):
        monkeypatch.delitem(sys.modules, file.stem, raising=False)
    return tmp_path / "examples"


@pytest.mark.parametrize("command", RUN, ids=str)
def test_a_command_of_the_page_runs(command, here, monkeypatch):
    call(command.entry, [*command.arguments, *SMALL[command.entry]], monkeypatch)
    if command.entry == "tpg.train":
        with (here / "run" / "metrics.csv").open(newline="") as file:
            (row,) = csv.DictReader(file)
        assert float(row["completions/unscored"]) == 0.0
        assert float(row["completions/mean_length"]) >= 1
    else:
        rows = json.loads((here / "run" / "audit.json").read_text())
        given = " ".join(word for word in command.arguments if word not in ("--config-dir", "conf"))
        assert VERDICTS.get(given, "") in rows[0]["verdict"]


def test_the_page_has_a_command_for_every_example_and_a_verdict_is_of_one_of_them():
    told = PAGE.read_text()
    files = [*EXAMPLES.glob("*.py"), *EXAMPLES.glob("conf/*/*.yaml")]
    assert len(files) == 9
    for file in files:
        assert f"(examples/{file.relative_to(EXAMPLES)})" in told, file
    given = [" ".join(c.arguments).removeprefix("--config-dir conf ") for c in RUN if c.entry == "tpg.audit"]
    assert set(VERDICTS) <= set(given)


def test_the_term_counts_distinct_runs(here):
    term = importlib.import_module("my_terms").NoRepetition(tokens=2)
    sample = importlib.import_module("tpg.rewards.base").Sample
    assert term.score(sample(prompt="", response="", token_ids=(1, 2, 1, 2, 3))) == 0.75  # (1,2) twice, (2,1), (2,3)
    assert term.score(sample(prompt="", response="", token_ids=(1,))) == 1.0


def test_the_function_rewards_the_answer_alone_most(here):
    brevity = importlib.import_module("my_rewards").brevity
    assert brevity("12", "12") == 1.0
    assert brevity("is 12", "12") == 0.25
    assert brevity("13", "12") == 0.0


def test_the_sweep_of_ones_own_searches(here, monkeypatch):
    (command,) = [c for c in commands(DOCS / "sweeps.md") if c.arguments[0] == "sweep=my_sweep.yaml"]
    small = ["debug=fast", "warm_start=none", "rollout.prompts=1", "task.train_size=8", "task.evaluation_size=4"]
    call(
        "tpg.sweep", [*command.arguments, *small, *SMALL["tpg.train"][3:], "sweep.trials=1", "run_dir=run"], monkeypatch
    )
    (row,) = csv.DictReader((here / "run" / "trials.csv").read_text().splitlines())
    assert row["state"] == "complete"
    assert set(row) >= {"eval/pass@1", "optimizer.lr", "reward_model.length.weight", "update.epochs"}
