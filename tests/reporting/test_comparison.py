"""What differs between two runs."""

import io

import pytest
from made_runs import config, grpo, make_run, rows
from rich.console import Console

from tpg.reporting.comparing.comparison import AtTokens, at_equal_tokens, different_settings, outcomes, print_comparison
from tpg.reporting.comparing.runs import open_run


@pytest.fixture
def pair(tmp_path):
    """Two runs from (config, rows, final held-out reward)."""

    def make(*runs):
        folders = [make_run(tmp_path / "ab"[i], made, its, final=final) for i, (made, its, final) in enumerate(runs)]
        return [open_run(str(folder))[0] for folder in folders]

    return make


def test_options_come_before_keys_and_equal_ones_are_left_out(pair):
    a, b = pair(
        (config(0), rows([0.1] * 4), None),
        (grpo(3, optimizer__lr=1e-6, run_dir="x"), rows([0.1] * 4), None),
    )
    assert different_settings(a, b) == [
        ("estimator", "rloo", "grpo"),
        ("algorithm", "rloo", "grpo"),
        ("estimator._target_", "tpg.estimators.rloo.RLOO", "tpg.estimators.group.GRPO"),
        ("optimizer.lr", "1e-05", "1e-06"),
        ("seed", "0", "3"),
        ("estimator.epsilon", "not there", "1e-06"),
        ("estimator.std", "not there", "group"),
    ]


def test_outcomes_side_by_side(pair):
    a, b = pair(
        (config(0), rows([0.1, 0.5, 0.3, 0.4], **{"eval/reward": [0.2, "", 0.3, ""]}), 0.45),
        (config(1), [{**row, "completions/unscored": 1} for row in rows([0.2, 0.2, 0.2], tokens=200)], None),
    )
    given = outcomes(a, b)
    assert given.pop("held out first") == (0.2, pytest.approx(float("nan"), nan_ok=True))
    assert given.pop("held out last")[0] == given.pop("held out best")[0] == 0.45
    assert given == {
        "iterations": (4, 3),
        "reward first": (0.1, 0.2),
        "reward last": (0.4, 0.2),
        "reward best": (0.5, 0.2),
        "tokens": (400, 600),
        "seconds": (8, 6),
        "tokens/s": (50, 100),
        "unscored": (0, 3),
    }


def test_curves_meet_at_equal_tokens(pair):
    # a is at 100, 200, .. 600 tokens and b at 200, 400, 600; both straight, though b's mean of three lags behind.
    a, b = pair(
        (config(0), rows([0.0, 0.0, 0.0, 0.0, 0.0, 0.6]), None),
        (config(1), rows([0.3, 0.6, 0.9], tokens=200), None),
    )
    given = at_equal_tokens(a, b, "reward")
    assert [at.tokens for at in given] == [280, 360, 440, 520, 600]
    # b's means of three: 0.3, 0.45, 0.6 at 200, 400, 600.
    assert [at.second for at in given] == pytest.approx([0.36, 0.42, 0.48, 0.54, 0.6])
    # a's: zero up to 500 tokens, then 0.2 at 600.
    assert [at.first for at in given] == pytest.approx([0.0, 0.0, 0.0, 0.04, 0.2])


def test_curves_that_never_meet_have_no_difference(pair):
    a, b = pair((config(0), rows([0.1], tokens=10), None), (config(1), rows([0.1, 0.2], tokens=500), None))
    assert at_equal_tokens(a, b, "reward") == []
    assert at_equal_tokens(a, a, "reward") == [AtTokens(10, 0.1, 0.1)]
    assert at_equal_tokens(a, b, "eval/reward") == []


def test_the_comparison_is_printed_and_markup_in_values_is_text(pair):
    a, b = pair(
        (config(0, policy__path="[bold]x[/bold]"), rows([0.1] * 4), 0.25),
        (config(0, policy__path="y"), rows([0.1, 0.2, 0.3, 0.4]), 0.5),
    )
    screen = io.StringIO()
    print_comparison(a, b, Console(file=screen, width=100))
    lines = [[cell.strip() for cell in line.strip("│").split("│")] for line in screen.getvalue().splitlines()]
    assert ["policy.path", "[bold]x[/bold]", "y"] in lines
    assert ["reward last", "0.100", "0.400", "+0.300"] in lines
    assert ["held out last", "0.250", "0.500", "+0.250"] in lines
    assert ["400", "0.100", "0.300", "+0.200"] in lines


def test_the_same_config_is_said_to_be(pair):
    a, b = pair((config(0), rows([0.1] * 4), None), (config(0), rows([0.1] * 4), None))
    screen = io.StringIO()
    print_comparison(a, b, Console(file=screen, width=100))
    assert screen.getvalue().startswith("config: the same\n")
