"""Each term on literal responses with literal values."""

import os
import subprocess
import sys

import pytest
from pydantic import ValidationError

from tpg.rewards.base import Sample
from tpg.rewards.length import LengthTarget, SoftOverlong
from tpg.rewards.match import ExactAnswer, LastNumber
from tpg.rewards.math_verify import MathVerify
from tpg.rewards.reasoning_gym import ReasoningGymScore
from tpg.rewards.regex import Regex
from tpg.rewards.sorted_digits import SortedDigits


def sample(response, answer=None, **rest):
    return Sample(prompt="a prompt", response=response, answer=answer, **rest)


def of_length(tokens):
    return Sample(prompt="a prompt", response="a response", token_ids=tuple(range(tokens)))


@pytest.mark.parametrize(
    ("term", "response", "answer", "value"),
    [
        (ExactAnswer(), "Paris", "Paris", 1),
        (ExactAnswer(), "\n Paris ", "Paris", 1),
        (ExactAnswer(), "paris", "Paris", 0),
        (ExactAnswer(ignore_case=True), "paris", "PARIS", 1),
        (ExactAnswer(ignore_case=True), "Paris.", "Paris", 0),
        (ExactAnswer(), "", "Paris", 0),
        (LastNumber(), "It makes 3 and then 7.", "7", 1),
        (LastNumber(), "It makes 7, not 3", "7", 0),
        (LastNumber(), "no number", "7", 0),
        (LastNumber(), "x = -3", "-3", 1),
        (LastNumber(), "x = \u22123", "-3", 1),
        (LastNumber(), "between 12-13", "13", 1),
        (LastNumber(), "(5)-2", "2", 1),
        (LastNumber(), "$1,234.50 in all", "1234.5", 1),
        (LastNumber(), "1,234,567", "1234567", 1),
        (LastNumber(), "1,2345", "2345", 1),
        (LastNumber(), "1, 2", "2", 1),
        (LastNumber(), "1/2", "2", 1),
        (LastNumber(), "about .5", "0.5", 1),
        (LastNumber(), "3.5", "3", 0),
        (LastNumber(), "007", "7", 1),
        (LastNumber(), "9007199254740993", "9007199254740992", 0),
        (LastNumber(), "18", "9 + 9 = 18\n#### 18", 1),
        (LastNumber(tolerance=0.01), "3.15", "3.14", 1),
        (LastNumber(tolerance=0.01), "3.16", "3.14", 0),
        (SortedDigits(), "013579", "013579", 1),
        (SortedDigits(), "013597", "013579", 4 / 6),
        (SortedDigits(), "975310", "013579", 0),
        (SortedDigits(), "01357", "013579", 0),
        (SortedDigits(), "0135799", "013579", 0),
        (SortedDigits(partial=False), "013597", "013579", 0),
        (SortedDigits(partial=False), "013579", "013579", 1),
        (MathVerify(), r"So we get $\frac{1}{2}$.", "0.5", 1),
        (MathVerify(), r"So we get $\frac{1}{3}$.", "0.5", 0),
        (MathVerify(), r"\boxed{1 + x^2}", "x^2+1", 1),
        (MathVerify(), "The answer is 1,234", "$1234$", 1),
        (MathVerify(), r"$\sqrt{8}$", r"It is \boxed{2\sqrt{2}}", 1),
        (MathVerify(), "I do not know", "7", 0),
    ],
)
def test_what_compares_with_the_answer(term, response, answer, value):
    assert term.score(sample(response, answer)) == pytest.approx(value, abs=1e-12)
    assert term.required_columns() == {"answer"}


@pytest.mark.parametrize(("require_finished", "value"), [(False, 1), (True, 0)])
def test_last_number_of_a_truncated_response(require_finished, value):
    term = LastNumber(require_finished=require_finished)
    assert term.score(sample("12 + 5 = 1", "1", truncated=True)) == value
    assert term.score(sample("12 + 5 = 1", "1")) == 1


def test_sorted_digits_cut_short_are_worth_nothing():
    assert SortedDigits().score(sample("013579", "013579", truncated=True)) == 0


@pytest.mark.parametrize("term", [ExactAnswer(), LastNumber(), MathVerify(), SortedDigits()])
def test_a_missing_answer_is_an_error_and_not_a_zero(term):
    with pytest.raises(ValueError, match="no answer"):
        term.score(sample("7"))


@pytest.mark.parametrize("term", [LastNumber(), MathVerify()])
def test_an_answer_that_cannot_be_read_is_an_error_and_not_a_zero(term):
    with pytest.raises(ValueError, match="the answer ' '"):
        term.score(sample("7", " "))


@pytest.mark.parametrize(
    ("term", "response", "value"),
    [
        (Regex(pattern=r"<answer>\d+</answer>"), "so <answer>12</answer>!", 1),
        (Regex(pattern=r"<answer>\d+</answer>"), "so <answer>twelve</answer>", 0),
        (Regex(pattern=r"\d+", full_match=True), "12", 1),
        (Regex(pattern=r"\d+", full_match=True), "12 ", 0),
        (Regex(pattern="yes"), "YES", 0),
        (Regex(pattern="yes", ignore_case=True), "YES", 1),
        (Regex(pattern="(?s)a.b"), "a\nb", 1),
    ],
)
def test_regex(term, response, value):
    assert term.score(sample(response)) == value


def test_a_bad_regular_expression_is_refused_when_built():
    with pytest.raises(ValidationError, match="'a\\(b' is not a regular expression: missing \\)"):
        Regex(pattern="a(b")


@pytest.mark.parametrize(("tokens", "value"), [(50, 1), (45, 0.75), (60, 0.5), (70, 0), (30, 0), (0, 0), (1000, 0)])
def test_length_target(tokens, value):
    assert LengthTarget(target_tokens=50, tolerance_tokens=20).score(of_length(tokens)) == value


@pytest.mark.parametrize(("tokens", "value"), [(0, 0), (16384, 0), (18432, -0.5), (20480, -1), (30000, -1)])
def test_soft_overlong(tokens, value):
    assert SoftOverlong(max_tokens=20480, buffer_tokens=4096).score(of_length(tokens)) == value


def test_lengths_out_of_range_are_refused_when_built():
    with pytest.raises(ValidationError, match="more than max_tokens=10"):
        SoftOverlong(max_tokens=10, buffer_tokens=11)
    with pytest.raises(ValidationError, match="greater than 0"):
        LengthTarget(target_tokens=50, tolerance_tokens=0)


ENTRY = {"question": "4 - 1 - 7 =", "answer": "-4", "metadata": {}}


@pytest.mark.parametrize(
    ("tag", "response", "value"),
    [
        (None, " -4\n", 1),
        (None, "4", 0),
        (None, "It is -4", 2 / 8),
        ("answer", "It is <answer> -4 </answer>.", 1),
        ("answer", "<answer>3</answer> no, <answer>-4</answer>", 1),
        ("answer", "-4", 0),
        ("final", "<final>-4</final>", 1),
    ],
)
def test_reasoning_gym(tag, response, value):
    term = ReasoningGymScore(answer_tag=tag)
    asked = sample(response, columns={"dataset": "chain_sum", "entry": ENTRY})
    assert term.score(asked) == pytest.approx(value)
    assert term.required_columns() == {"dataset", "entry"}


def test_reasoning_gym_without_such_a_dataset():
    with pytest.raises(ValueError, match="'chain_sums' not registered"):
        ReasoningGymScore().score(sample("-4", columns={"dataset": "chain_sums", "entry": ENTRY}))


def test_importing_every_term_loads_nothing_heavy():
    code = """
import pkgutil, importlib, sys, tpg.rewards
for module in pkgutil.iter_modules(tpg.rewards.__path__, "tpg.rewards."):
    importlib.import_module(module.name)
print(sorted({"torch", "sympy", "math_verify", "reasoning_gym", "transformers"} & set(sys.modules)))
"""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    assert run.stdout == "[]\n"
