"""docs/methods.md names every option, and says of each what its file and the audit say."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from tpg.audit.rows import Names, audit
from tpg.composition import to_experiment

ROOT = Path(__file__).parents[1]
CONF = ROOT / "conf"
METHODS = (ROOT / "docs" / "methods.md").read_text()
GROUPS = ("algorithm", "estimator", "objective", "aggregation", "kl", "mismatch", "critic")
PARTS = ("estimator", "objective", "aggregation", "kl")
ARXIV = re.compile(r"\d{4}\.\d{5}")


def tables() -> list[list[dict[str, str]]]:
    """Every Markdown table, each row as cells by column."""
    found = []
    for block in re.findall(r"(?:^\|.*\n)+", METHODS, flags=re.MULTILINE):
        rows = [re.split(r"(?<!\\)\|", line.strip())[1:-1] for line in block.strip().splitlines()]
        head, _, *body = [[cell.strip() for cell in row] for row in rows]
        assert all(len(row) == len(head) for row in body), head
        found.append([dict(zip(head, row, strict=True)) for row in body])
    return found


def table(*columns: str) -> dict[str, dict[str, str]]:
    """The one table with these columns, by the option in the first one."""
    (rows,) = [rows for rows in tables() if next(iter(rows[0])) == columns[0] and set(columns) <= set(rows[0])]
    return {row[columns[0]].strip("`"): row for row in rows}


def comments(group: str, option: str) -> str:
    """What an option's file opens with."""
    lines = (CONF / group / f"{option}.yaml").read_text().splitlines()
    return "\n".join(line for line in lines if line.startswith("#"))


def selected(algorithm: str) -> dict[str, str]:
    """The option of each group that an algorithm's file chooses; what it leaves out is as in train.yaml."""
    chosen = {}
    for file in (CONF / "train.yaml", CONF / "algorithm" / f"{algorithm}.yaml"):
        for entry in OmegaConf.to_container(OmegaConf.load(file))["defaults"]:
            if isinstance(entry, dict):
                chosen |= {key.removeprefix("override /"): option for key, option in entry.items()}
    return chosen


PUBLISHED = table("algorithm", "paper", *PARTS, "numbers")


@pytest.mark.parametrize("group", GROUPS)
def test_every_option_has_a_row_and_every_row_an_option(group):
    assert sorted(table(group, "paper")) == sorted(file.stem for file in (CONF / group).glob("*.yaml"))


def test_the_audit_has_a_row_for_every_algorithm():
    assert list(table("algorithm", "relative bias")) == list(PUBLISHED)


@pytest.mark.parametrize("algorithm", PUBLISHED)
def test_an_algorithm_selects_what_its_row_says(algorithm):
    row, chosen = PUBLISHED[algorithm], selected(algorithm)
    assert {part: row[part].strip("`") for part in PARTS} == {part: chosen[part] for part in PARTS}


@pytest.mark.parametrize("algorithm", PUBLISHED)
def test_the_numbers_are_those_of_the_options_that_an_algorithm_selects(algorithm):
    chosen = selected(algorithm)
    for override in re.findall(r"`([^`]+)`", PUBLISHED[algorithm]["numbers"]):
        key, number = override.split("=")
        group, _, path = key.partition(".")
        option = OmegaConf.load(CONF / group / f"{chosen[group]}.yaml")
        assert float(OmegaConf.select(option, path)) == float(number), override


@pytest.mark.parametrize("group", GROUPS)
def test_every_paper_is_named_by_the_options_file(group):
    for option, row in table(group, "paper").items():
        assert set(ARXIV.findall(row["paper"])) <= set(ARXIV.findall(comments(group, option))), option


@pytest.mark.parametrize("algorithm", ["reinforce", "rloo", "dr_grpo", "grpo"])
def test_the_verdict_is_what_the_audit_says(algorithm):
    with initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
        config = compose("train", overrides=[f"algorithm={algorithm}"])
    experiment = to_experiment(OmegaConf.create({k: v for k, v in config.items() if k not in ("run_dir", "resume")}))
    (row,) = audit(
        {algorithm: experiment.estimator},
        experiment.method,
        experiment.rollout.sampling,
        Names("", "", "", ""),
        replace(experiment.audit, worlds=3),
    )
    written = table("algorithm", "relative bias")[algorithm]
    # The cosine is a median over other worlds than these three; scales and causes are the same in all.
    words = [re.sub(r"cos \d\.\d+", "cos", text) for text in (row.judgement.verdict, written["verdict"])]
    assert words[0] == words[1]
    assert abs(row.judgement.cosine - float(written["cosine"])) < 0.05
    assert abs(row.judgement.scale - float(written["scale"])) < 0.05
