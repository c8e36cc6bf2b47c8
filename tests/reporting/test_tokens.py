"""Reading a record of tokens, picking from it, and its words."""

import math

import pytest
from token_lines import line, write

from tpg.errors import UserError
from tpg.reporting.tokens.record import FILTERS, caption, headline, read_groups, recorded, scale, signed, visible


@pytest.fixture
def groups(tmp_path):
    return read_groups(write(tmp_path))


def test_the_recorded_iterations_in_order(tmp_path):
    for iteration in (10, 2, 1000):
        write(tmp_path, iteration)
    (tmp_path / "tokens" / "iteration-000011.tmp").touch()
    assert list(recorded(tmp_path)) == [2, 10, 1000]
    assert recorded(tmp_path)[10].name == "iteration-000010.jsonl"
    assert recorded(tmp_path / "absent") == {}


def test_lines_become_groups_of_one_row_and_draw(groups):
    assert [(group.row, group.draw, len(group.responses)) for group in groups] == [(7, 0, 2), (9, 2, 2), (4, 0, 3)]
    assert [(group.number, group.of, group.iteration) for group in groups] == [(1, 3, 4), (2, 3, 4), (3, 3, 4)]
    first = groups[0].responses[1]
    assert (first.number, first.tokens, first.reward, first.truncated) == (2, ("a\n", " [b]"), 0.0, True)
    assert first.values("weight") == (-0.5, -0.25)
    assert first.values("change") == (-0.3, 0.0)


def test_mean_and_spread_leave_out_what_is_unscored(groups):
    assert groups[0].std == pytest.approx(math.sqrt(0.5))
    assert [group.zero_variance for group in groups] == [False, True, False]
    assert groups[2].rewards == [0.75, 0.5]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("highest", [(1, [1]), (3, [1]), (2, [1, 2])]),
        ("lowest", [(1, [2]), (2, [1, 2]), (3, [3])]),
        ("zero_variance", [(2, [1, 2])]),
        ("truncated", [(1, [2])]),
        ("unscored", [(3, [2])]),
        ("biggest_weights", [(3, [3, 1]), (1, [1, 2])]),
    ],
)
def test_a_filter_picks_groups_and_responses(groups, name, expected):
    picked = FILTERS[name](groups)
    assert [(group.number, [response.number for response in group.shown]) for group in picked] == expected
    assert all(len(group.responses) == len(groups[group.number - 1].responses) for group in picked)


def test_every_filter_takes_what_has_nothing(tmp_path):
    nothing = line(1, 0, "", None, 0, [], [], [], [], None)
    groups = read_groups(write(tmp_path, lines=[nothing]))
    assert [name for name, pick in FILTERS.items() if pick(groups)] == ["unscored"]
    assert [name for name, pick in FILTERS.items() if pick([])] == []
    assert headline(groups[0]).endswith("1 response, no reward, 1 unscored")
    assert "no weight" in caption(groups[0].responses[0])
    assert scale(groups, "weight") == 0.0


def test_the_scale_is_the_largest_finite_size(tmp_path, groups):
    assert scale(groups, "weight") == 1.0
    assert scale(groups, "change") == 0.3
    lost = line(1, 0, "", None, 0, ["a", "b"], [-1.0, -1.0], [math.inf, -0.5], [math.nan, 0.0], 0.0)
    lost = read_groups(write(tmp_path, lines=[lost]))
    assert (scale(lost, "weight"), scale(lost, "change")) == (0.5, 0.0)


def test_a_group_in_one_line(groups):
    assert [headline(group) for group in groups] == [
        "iteration 4, prompt 1 of 3 (row 7, draw 0): 2 responses, reward 0.500 ± 0.707",
        "iteration 4, prompt 2 of 3 (row 9, draw 2): 2 responses, reward 0.250 ± 0.000, zero variance",
        "iteration 4, prompt 3 of 3 (row 4, draw 0): 3 responses, reward 0.625 ± 0.177, 1 unscored",
    ]
    (cut,) = FILTERS["truncated"](groups)
    assert headline(cut).endswith("2 responses, reward 0.500 ± 0.707, 1 shown")


def test_a_response_in_one_line(groups):
    told = [caption(response) for response in (*groups[0].responses, groups[2].responses[1])]
    assert told == [
        "response 1: reward 1.000 (sorted 1.000, length 0.500); weight +0.5 on every token;"
        " log-prob -0.875, changed by +0.12; 3 tokens",
        "response 2: reward 0.000 (sorted 0.000, length 0.500); weights -0.5 to -0.25, mean -0.375;"
        " log-prob -3.000, changed by -0.3; 2 tokens, truncated",
        "response 2: unscored (sorted failed, length 0.500); weight 0 on every token;"
        " log-prob -1.500, changed by 0; 1 token; out of the update",
    ]


@pytest.mark.parametrize(
    ("value", "expected"),
    [(0.0, "0"), (-0.0, "0"), (0.5, "+0.5"), (-1 / 3, "-0.333"), (1.23456e-7, "+1.23e-07"), (math.nan, "+nan")],
)
def test_a_number_has_a_sign_and_three_digits(value, expected):
    assert signed(value) == expected


@pytest.mark.parametrize(
    ("text", "shown", "inline"),
    [
        ("a b", "a b", "a b"),
        ("a\n\tb\r\n", "a⏎\n⇥b␍⏎\n", "a⏎⇥b␍⏎"),
        ("\x1b[31m\x00\x7f", "␛[31m␀\\u007f", "␛[31m␀\\u007f"),
        ("größer 数 é", "größer 数 é", "größer 数 é"),
        ("\u202ea\u200bb\u2028c\ufeff\ud800", "\\u202ea\\u200bb\\u2028c\\ufeff\\ud800", None),
    ],
)
def test_what_has_no_shape_is_marked(text, shown, inline):
    assert visible(text) == shown
    assert visible(text, breaks=False) == (inline or shown)


@pytest.mark.parametrize("text", ["{", '{"row": 1}\n', "7\n", "[]\n", '{"row": 1, "draw": 0, "tokens": 5}\n'])
def test_what_is_no_record_is_refused(tmp_path, text):
    file = write(tmp_path)
    file.write_text(text)
    with pytest.raises(UserError, match=r"iteration-000004\.jsonl: is no record of tokens: "):
        read_groups(file)


def test_separators_within_a_token_do_not_split_its_line(tmp_path):
    odd = line(1, 0, "p\u2028", None, 0, ["a\u2028", "b\x85\x1c"], [-1.0, -1.0], [0.0, 0.0], [0.0, 0.0], 0.0)
    (group,) = read_groups(write(tmp_path, lines=[odd]))
    assert group.responses[0].tokens == ("a\u2028", "b\x85\x1c")
