"""`python -m tpg.show`: what it prints, how it pages, and what it refuses."""

import io
import subprocess
import sys
from functools import partial

import pytest
from rich.console import Console
from token_lines import line, write

import tpg.show
from tpg.reporting.tokens.record import FILTERS


@pytest.fixture
def folder(tmp_path):
    """A run's folder with three recorded iterations."""
    made = tmp_path / "run"
    for iteration in (1, 4, 20):
        write(made, iteration)
    (made / "config.yaml").write_text("seed: 0\n")
    return made


@pytest.fixture
def show(entry, monkeypatch):
    """`tpg.show` in this process."""
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.delenv("FORCE_COLOR", raising=False)
    return partial(entry, tpg.show)


def prompts(out):
    return [line.split(" (")[0] for line in out.splitlines() if line.startswith("iteration ")]


def test_the_last_recorded_iteration_is_shown(show, folder):
    code, out, err = show(f"run={folder}")
    assert (code, err) == (0, [])
    assert prompts(out) == [f"iteration 20, prompt {number} of 3" for number in (1, 2, 3)]
    assert out.startswith("⟨...⟩ tells the weight of the tokens after it\n\niteration 20, ")
    assert "\n⟨-0.5⟩a⏎\n⟨-0.25⟩ [b]\n" in out
    assert "\x1b" not in out
    assert "more;" not in out


def test_a_relative_folder_and_a_limit(show, folder):
    _, out, _ = show("run=run", "limit=1", "iteration=1")
    assert prompts(out) == ["iteration 1, prompt 1 of 3"]
    assert out.endswith("\n2 more; show them with limit=null, or pick with prompt= and filter=\n")
    assert len(prompts(show("run=run", "limit=null")[1])) == 3


@pytest.mark.parametrize(
    ("given", "expected"),
    [("2", ["2"]), ("31", ["1"]), ("sort", ["1", "2", "3"]), ("'54:'", ["3"]), ("'sort 2'", ["2"])],
)
def test_a_prompt_by_its_number_or_its_text(show, folder, given, expected):
    _, out, _ = show("run=run", f"prompt={given}")
    assert [place.split()[3] for place in prompts(out)] == expected


def test_a_filter_and_a_table_of_changes(show, folder):
    _, out, _ = show("run=run", "filter=truncated", "show=table", "colour=change")
    assert prompts(out) == ["iteration 20, prompt 1 of 3"]
    assert out.count("\nresponse ") == 1
    assert "#  token  weight  log-prob  change\n1  a⏎       -0.5   -1.0000    -0.3\n" in out


def test_every_filter_of_the_code_is_an_option_and_in_the_help(show, folder):
    help_text = show("--help")[1]
    for name in FILTERS:
        assert show("run=run", f"filter={name}")[0] == 0
        assert name in help_text
    for key in ("run", "iteration", "prompt", "filter", "colour", "show", "limit"):
        assert f"\n{key}=" in help_text


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ("", "run: has no value and needs one; set run=..."),
        ("run=nope", "run=nope holds no run: there is no config.yaml in it"),
        ("run=run iteration=3", "iteration=3: was not recorded; there are 1, 4, 20"),
        (
            "run=run prompt=99",
            "prompt=99: is neither the number nor in the text of any of the 3 prompts that iteration 20 recorded",
        ),
        (
            "run=run prompt=1 filter=unscored",
            "filter=unscored: matches nothing in what prompt=1 picks of the 3 prompts that iteration 20 recorded",
        ),
        (
            "run=run filter=highst",
            "filter=highst: should be 'highest', 'lowest', 'zero_variance', 'truncated', 'unscored' or"
            " 'biggest_weights'; did you mean highest?",
        ),
        ("run=run colour=wieght", "colour=wieght: should be 'weight' or 'change'; did you mean weight?"),
        ("run=run show=tabel", "show=tabel: should be 'text' or 'table'; did you mean table?"),
        ("run=run limit=0", "limit=0: should be greater than or equal to 1"),
        ("run=run +x=1", "x: no such key; Show has run, iteration, prompt, filter, colour, show, limit"),
    ],
)
def test_a_mistake_is_told_in_one_line(show, folder, arguments, expected):
    assert show(*arguments.split()) == (2, "", [f"error: {expected}"])


def test_a_filter_that_matches_nothing(show, folder):
    write(folder, 20, [line(1, 0, "p", None, 0, ["a"], [-1.0], [1.0], [0.0], 1.0)])
    assert show("run=run", "filter=truncated") == (
        2,
        "",
        ["error: filter=truncated: matches nothing in the 1 prompt that iteration 20 recorded"],
    )


def test_a_run_without_a_record(show, folder):
    for file in (folder / "tokens").iterdir():
        file.unlink()
    code, out, err = show("run=run")
    assert (code, out, len(err)) == (2, "", 1)
    assert err[0].startswith("error: run=run: holds no record of tokens: it has ended no iteration yet, ")


def test_of_many_iterations_the_ends_are_named(show, folder):
    for iteration in range(1, 101):
        write(folder, iteration, [])
    assert show("run=run", "iteration=200")[2] == [
        "error: iteration=200: was not recorded; there are 1, 2, 3, 4, 5, 6, ..., 96, 97, 98, 99, 100"
    ]
    assert "no prompt" in show("run=run", "filter=lowest")[2][0]


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        (["q"], ["a"]),
        (["", "n", "N"], ["a", "b", "c"]),
        (["n", "p", "p", "q"], ["a", "b", "a", "a"]),
        ([], ["a"]),
    ],
)
def test_pages_are_turned_by_keys(monkeypatch, keys, expected):
    left = iter(keys)

    def answer(self, prompt):
        try:
            return next(left)
        except StopIteration:
            raise EOFError from None

    monkeypatch.setattr(Console, "input", answer)
    console = Console(file=io.StringIO(), width=80)
    tpg.show.page(["a", "b", "c"], console)
    assert console.file.getvalue().split() == expected


def test_a_process_is_quick_to_load(folder):
    """It shows a run without loading torch."""
    code = (
        "import sys, tpg.show; sys.argv = ['tpg-show', sys.argv[1], 'limit=1']; tpg.show.main();"
        "assert 'torch' not in sys.modules and 'lightning' not in sys.modules"
    )
    command = [sys.executable, "-c", code, f"run={folder}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=folder)
    assert done.returncode == 0, done.stderr
    assert prompts(done.stdout) == ["iteration 20, prompt 1 of 3"]
