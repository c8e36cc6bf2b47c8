"""How far a reward agrees with a verifier, by hand and on a policy."""

import json
import math
import random

import pytest

from tpg import evaluate
from tpg.training.agreement import agreement, auc, calibration_error, logistic_fit, reliability
from tpg.training.best_of_n import Answered

TINY = (
    "policy=tiny", "policy.hidden_size=32", "policy.layers=1", "task=sort", "task.train_size=16",
    "task.evaluation_size=6", "rollout.max_response_tokens=6", "trainer=cpu", "trainer.precision=32-true",
    "reward_workers=1", "evaluation.responses_per_prompt=4",
)  # fmt: skip
DIGITS = ("reward_model=[regex]", "reward_model.regex.pattern='[0-9]'")


def test_auc_by_hand():
    # Right: .9 .4; wrong: .5 .4 .1. Of the six pairs .9 wins 3, .4 wins 1 and ties 1.
    assert auc([0.9, 0.4, 0.5, 0.4, 0.1], [True, True, False, False, False]) == pytest.approx(4.5 / 6)
    assert auc([1, 1, 1], [True, False, True]) == 0.5
    assert auc([2, 1], [True, False]) == 1
    assert auc([1, 2], [True, True]) is None
    assert auc([1, 2], [False, False]) is None


def test_reliability_by_hand():
    bins = reliability([0.05, 0.15, 0.12, 0.95, 1.0, 0.9], [False, True, False, True, True, False], 10)
    assert [(each.responses, each.share) for each in bins] == [(1, 0), (2, 0.5), (3, pytest.approx(2 / 3))]
    assert [each.confidence for each in bins] == pytest.approx([0.05, 0.135, 0.95])
    # 1/6 |.05 - 0| + 2/6 |.135 - .5| + 3/6 |.95 - .6667|
    assert calibration_error(bins) == pytest.approx(0.05 / 6 + 2 * 0.365 / 6 + 3 * (0.95 - 2 / 3) / 6)


def test_agreement_by_hand():
    nan = math.nan
    prompts = [
        [Answered(0.9, 1), Answered(0.5, 0), Answered(0.9, 0), Answered(nan, 1)],
        [Answered(0.2, 0), Answered(0.2, 0), Answered(0.7, nan)],
        [Answered(0.3, 1), Answered(0.4, 0)],
    ]
    found = agreement(prompts, success=1.0)
    assert (found.responses, found.right, found.pairs, found.fitted) == (7, 2, 3, False)
    assert found.ordered == pytest.approx((1 + 0.5 + 0) / 3)
    # Right .9 .3 against wrong .5 .9 .2 .2 .4: .9 wins 4 and ties 1, .3 wins 2.
    assert found.auc == pytest.approx(6.5 / 10)
    assert found.threshold == pytest.approx(0.6)
    assert found.fooled == (2,)


def test_pairs_are_of_truths_that_differ_however_little():
    prompts = [[Answered(3, 0.1), Answered(2, 0.5), Answered(1, 0.4)]]
    found = agreement(prompts, success=1.0)
    assert (found.pairs, found.ordered) == (3, pytest.approx(1 / 3))
    assert (found.auc, found.calibration_error, found.bins) == (None, None, ())
    assert (found.threshold, found.fooled) == (2, (0,))


def test_nothing_scored_by_both_is_refused():
    with pytest.raises(ValueError, match="no response has both"):
        agreement([[Answered(math.nan, 1), Answered(1, math.nan)]], 1.0)


def test_a_logistic_fit_finds_the_curve_that_classes_were_drawn_from():
    draw = random.Random(0)
    scores = [draw.gauss(3, 5) for _ in range(4000)]
    true = [1 / (1 + math.exp(-(0.8 * score - 1))) for score in scores]
    fitted = logistic_fit(scores, [draw.random() < p for p in true])
    assert max(abs(p - q) for p, q in zip(fitted, true, strict=True)) < 0.05


@pytest.mark.parametrize("scores", [[1.0, 2.0, 3.0, 4.0], [1e8, 2e8, 3e8, 1e9], [-1e-9, 0.0, 1e-9, 1.0]])
def test_a_logistic_fit_of_separate_classes_is_finite(scores):
    fitted = logistic_fit(scores, [False, False, True, True])
    assert fitted == sorted(fitted)
    # Platt's targets are 3/4 and 1/4, so that the fit's mean is 1/2.
    assert sum(fitted) / 4 == pytest.approx(0.5, abs=1e-6)
    assert 0 < fitted[0] < 0.5 < fitted[-1] < 1


def test_a_logistic_fit_of_equal_scores_is_their_share():
    # The targets of 3 right and 1 wrong are 4/5 three times and 1/3.
    assert logistic_fit([5.0] * 4, [True, True, True, False]) == pytest.approx([(3 * 4 / 5 + 1 / 3) / 4] * 4, abs=1e-6)


def test_a_reward_against_a_verifier_on_a_policy(entry, tmp_path):
    report = tmp_path / "found.json"
    given = ("against=[length]", "against_success_reward=0.5", f"report={report}", "samples=1")
    code, out, _ = entry(evaluate, *TINY, *DIGITS, *given, "against.length.target_tokens=6")
    assert code == 0
    found = json.loads(report.read_text())["agreement"]
    assert found["responses"] == 24
    assert found["fitted"] is False
    assert sum(each["responses"] for each in found["bins"]) == 24
    assert all(example["truth"] < 0.5 for example in found["fooled"])
    assert "regex against length" in out


def test_a_list_that_is_not_on_the_command_line_names_terms_too(entry):
    code, out, _ = entry(evaluate, *TINY, *DIGITS, "++against=[sorted_digits]", "samples=0")
    assert code == 0
    assert "regex against sorted_digits" in out


def test_one_class_is_said(entry):
    given = ("reward_model@against=[regex]", "against.regex.pattern='(?s).*'", "reward_model=[sorted_digits]")
    code, out, _ = entry(evaluate, *TINY, *given, "samples=0")
    assert code == 0
    assert "undefined: all of the responses are right" in " ".join(out.replace("│", " ").split())
    assert "undefined: no such pair" in out


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (
            ["reward_model=[]", "against=[exact_answer]"],
            "reward_model is empty, and against=[exact_answer] compares it",
        ),
        ([*DIGITS, "against=[exact_anser]"], "against=exact_anser: no such option; there are"),
        (["reward_model=[exact_answer]", "against=[exact_answer]"], "against.exact_answer: reward_model has the same"),
        ([*DIGITS, "against=[reasoning_gym]"], "against.reasoning_gym needs the column 'dataset'"),
        ([*DIGITS, "against=[length]"], "against.length.t"),
        ([*DIGITS, "++against=exact_answer"], "against=exact_answer: should be a list, e.g. against=[exact_answer]"),
        ([*DIGITS, "++against=[exact_anser]"], "against=exact_anser: no such option; there are"),
    ],
)
def test_mistakes_of_a_comparison_are_told_in_one_line(entry, given, said):
    code, out, errors = entry(evaluate, *TINY, *given)
    assert (code, out, len(errors)) == (2, "", 1)
    assert errors[0].startswith(f"error: {said}")


def test_a_truth_that_scores_nothing_is_told(entry, tmp_path):
    (tmp_path / "my_truth.py").write_text("def broken(response): raise RuntimeError('no server')\n")
    given = ("reward_model@against=[function]", "against.function.function=my_truth:broken")
    code, _, errors = entry(evaluate, *TINY, *DIGITS, *given)
    assert code == 2
    assert errors == ["error: against: none of 24 responses was scored: function: RuntimeError: no server"]


def test_a_reward_that_scores_nothing_is_told(entry, tmp_path):
    (tmp_path / "my_reward.py").write_text("def broken(response): raise RuntimeError('no server')\n")
    code, _, errors = entry(
        evaluate, *TINY, "reward_model=[function]", "reward_model.function.function=my_reward:broken"
    )
    assert code == 2
    assert errors == ["error: reward_model: none of 24 responses was scored: function: RuntimeError: no server"]


def test_a_run_is_compared_with_its_own_rewards(entry, tmp_path):
    from tpg import train

    run = tmp_path / "run"
    small = [word for word in TINY if not word.startswith("evaluation.")]
    short = ("iterations=1", "rollout.prompts=2", "rollout.responses_per_prompt=2", "logger=[]", "evaluation.every=0")
    assert entry(train, *small, "reward_model=[sorted_digits]", *short, f"run_dir={run}")[0] == 0
    report = tmp_path / "found.json"
    code, _, errors = entry(
        evaluate, f"run={run}", "reward_model@against=[exact_answer]", "best_of_n=2", f"report={report}"
    )
    assert (code, errors) == (0, [])
    found = json.loads(report.read_text())
    assert (found["reward_model"], found["against"]) == (["sorted_digits"], ["exact_answer"])
