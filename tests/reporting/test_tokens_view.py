"""Groups of responses as a terminal shows them, letter by letter."""

import io
import math

import pytest
from rich.console import Console
from token_lines import write

from tpg.reporting.tokens.record import read_groups
from tpg.reporting.tokens.view import group_view, legend, level, level_style


@pytest.fixture
def groups(tmp_path):
    return read_groups(write(tmp_path))


def printed(*views, width=108, system=None):
    console = Console(
        file=io.StringIO(), width=width, force_terminal=system is not None, color_system=system, _environ={}
    )
    console.print(*views, sep="\n", end="")
    return "\n".join(line.rstrip() for line in console.file.getvalue().split("\n"))


def test_running_text_without_colours_tells_each_change_of_weight(groups):
    view = group_view(groups[0], "weight", 1.0, table=False, colours=False)
    assert printed(view) == (
        "iteration 4, prompt 1 of 3 (row 7, draw 0): 2 responses, reward 0.500 ± 0.707\n"
        "sort 31:⏎\n"
        "\n"
        "answer: 13\n"
        "\n"
        "response 1: reward 1.000 (sorted 1.000, length 0.500); weight +0.5 on every token; log-prob -0.875, changed\n"
        "by +0.12; 3 tokens\n"
        "⟨+0.5⟩13<eos>\n"
        "\n"
        "response 2: reward 0.000 (sorted 0.000, length 0.500); weights -0.5 to -0.25, mean -0.375; log-prob -3.000,\n"
        "changed by -0.3; 2 tokens, truncated\n"
        "⟨-0.5⟩a⏎\n"
        "⟨-0.25⟩ [b]\n"
        "\n"
    )


def test_running_text_by_the_change_of_log_probability(groups):
    text = printed(group_view(groups[0], "change", 0.3, table=False, colours=False))
    assert "\n⟨+0.1⟩1⟨+0.02⟩3⟨0⟩<eos>\n" in text
    assert "\n⟨-0.3⟩a⏎\n⟨0⟩ [b]\n" in text


def test_a_line_a_token(groups):
    text = printed(group_view(groups[0], "weight", 1.0, table=True, colours=False))
    assert text.split("tokens, truncated\n")[1] == (
        "#  token  weight  log-prob  change\n1  a⏎       -0.5   -1.0000    -0.3\n2  ·[b]    -0.25   -2.0000       0\n\n"
    )


def test_what_would_steer_the_terminal_is_shown_instead(groups):
    text = printed(group_view(groups[2], "weight", 1.0, table=False, colours=False))
    assert "⟨0⟩⇥␛[31m\n" in text
    assert "⟨+1⟩<b>&⟨-0.125⟩∅\n" in text
    assert "\x1b" not in text


def test_only_the_responses_that_are_shown(groups):
    picked = groups[2].showing(lambda response: response.reward is None)
    text = printed(group_view(picked, "weight", 1.0, table=False, colours=False))
    assert text.count("\nresponse ") == 1
    assert "3 responses, reward 0.625 ± 0.177, 1 unscored, 1 shown\n" in text


def test_long_text_is_wrapped(groups):
    text = printed(group_view(groups[0], "weight", 1.0, table=False, colours=False), width=24)
    assert max(map(len, text.split("\n"))) <= 24


@pytest.mark.parametrize(
    ("value", "largest", "expected"),
    [
        *[(0.0, 1.0, 0), (1.0, 1.0, 5), (-1.0, 1.0, -5), (0.01, 1.0, 1), (-0.41, 1.0, -3), (0.4, 1.0, 2)],
        *[(7.0, 1.0, 5), (math.nan, 1.0, 0), (math.inf, 1.0, 0), (0.5, 0.0, 0)],
    ],
)
def test_five_levels_of_either_sign(value, largest, expected):
    assert level(value, largest) == expected


def test_the_largest_is_plain_red_or_green_and_zero_has_no_ground():
    assert str(level_style(5)) == "rgb(255,255,255) on rgb(10,125,55)"
    assert str(level_style(-5)) == "rgb(255,255,255) on rgb(190,30,30)"
    # A fifth of the way from (105, 105, 105).
    assert str(level_style(1)) == "rgb(255,255,255) on rgb(86,109,95)"
    assert level_style(0).bgcolor is None


def test_tokens_have_the_colour_of_their_value(groups):
    view = group_view(groups[0], "weight", 0.5, table=False, colours=True)
    text = printed(view, system="truecolor")
    green, red, middle = (f"\x1b[38;2;255;255;255;48;2;{rgb}m" for rgb in ("10;125;55", "190;30;30", "156;60;60"))
    assert f"{green}1\x1b[0m{green}3\x1b[0m{green}<eos>\x1b[0m\n" in text
    assert f"{red}a⏎\x1b[0m\n{middle} [b]\x1b[0m\n" in text
    assert "⟨" not in text
    coloured_table = printed(group_view(groups[0], "change", 0.3, table=True, colours=True), system="truecolor")
    assert f"{red}a⏎" in coloured_table


def test_the_legend(groups):
    assert printed(legend("change", 0.3, colours=False)) == "⟨...⟩ tells the log-prob change of the tokens after it"
    assert printed(legend("weight", 0.25, colours=True)) == "weight -0.25 " + " " * 22 + " +0.25"
    assert printed(legend("weight", 0.25, colours=True), system="truecolor").count("48;2;") == 10
