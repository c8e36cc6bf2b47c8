"""The memory table of docs/cluster.md is what the command's own function computes."""

import re
from pathlib import Path

import pytest
from published import LAYOUTS, METHODS, SHAPES, rows

PAGE = (Path(__file__).parents[2] / "docs" / "cluster.md").read_text()


def written():
    """The cells after each method and policy."""
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in re.findall(r"^\|.*$", PAGE, re.MULTILINE)]
    start = lines.index(["method", "policy", *LAYOUTS])
    return {(line[0], line[1]): line[2:] for line in lines[start + 2 : start + 2 + len(METHODS) * len(SHAPES)]}


def test_every_method_and_policy_has_a_row():
    assert list(written()) == [(method, name) for method in METHODS for name in SHAPES]


@pytest.mark.parametrize(("method", "name"), [("rloo", "SmolLM2-135M"), ("ppo with a critic model", "Qwen3-0.6B")])
def test_a_row_is_what_is_computed(method, name):
    assert rows([method], [name]) == [[method, name, *written()[method, name]]]


@pytest.mark.long
def test_every_row_is_what_is_computed():
    assert rows() == [[*key, *cells] for key, cells in written().items()]
