"""The best of n by hand, by enumeration, and on a policy."""

import json
import math
from itertools import combinations, product

import pytest

from tpg import evaluate
from tpg.training.best_of_n import Answered, complete, curve, expected_best, kl_of_best, sizes

TINY = (
    "policy=tiny", "policy.hidden_size=32", "policy.layers=1", "task=sort", "task.train_size=16",
    "task.evaluation_size=6", "rollout.max_response_tokens=6", "trainer=cpu", "trainer.precision=32-true",
    "reward_workers=1",
)  # fmt: skip
DIGITS = ("reward_model=[regex]", "reward_model.regex.pattern='[0-9]'")


def test_the_best_of_two_of_three_by_hand():
    # Rewards 1, 2, 3 with values 10, 0, 5: of the subsets {1,2}, {1,3}, {2,3} the best are 2, 3, 3.
    assert expected_best([1, 2, 3], [10, 0, 5], 2) == pytest.approx((0 + 5 + 5) / 3)
    assert expected_best([1, 2, 3], [10, 0, 5], 1) == 5
    assert expected_best([1, 2, 3], [10, 0, 5], 3) == 5
    assert expected_best([3, 1, 2], [3, 1, 2], 2) == pytest.approx(8 / 3)


def test_among_equal_rewards_each_is_chosen_as_often():
    # The pairs of rewards 1, 1, 0: {a,b} gives their mean 3, {a,c} gives 2, {b,c} gives 4.
    assert expected_best([1, 1, 0], [2, 4, 9], 2) == pytest.approx((3 + 2 + 4) / 3)
    assert expected_best([7, 7, 7], [1, 2, 6], 2) == pytest.approx(3)


@pytest.mark.parametrize("n", range(1, 7))
def test_it_is_the_mean_over_all_subsets(n):
    rewards, values = [0.3, 1.5, 1.5, -2.0, 0.3, 4.0], [1.0, 0.0, 3.0, 7.0, -1.0, 2.0]
    found = []
    for subset in combinations(range(6), n):
        top = max(rewards[i] for i in subset)
        best = [values[i] for i in subset if rewards[i] == top]
        found.append(sum(best) / len(best))
    assert expected_best(rewards, values, n) == pytest.approx(sum(found) / len(found), abs=1e-12)


def test_it_is_unbiased_for_the_best_of_new_responses():
    # A response is worth 0, 1 or 2 with equal probability; the best of 2 new ones is worth 13/9.
    estimates = [expected_best(drawn, drawn, 2) for drawn in product([0.0, 1.0, 2.0], repeat=4)]
    assert sum(estimates) / len(estimates) == pytest.approx(13 / 9, abs=1e-12)


@pytest.mark.parametrize("n", [0, 4])
def test_more_than_there_are_or_none_is_refused(n):
    with pytest.raises(ValueError, match=f"no subsets of {n} among 3"):
        expected_best([1, 2, 3], [1, 2, 3], n)


def test_the_divergence_of_the_best_of_n():
    assert kl_of_best(1) == 0
    assert kl_of_best(2) == pytest.approx(0.6931472 - 0.5)
    assert kl_of_best(16) == pytest.approx(2.7725887 - 0.9375)


def test_sizes_double_and_end_with_n():
    assert sizes(1) == [1]
    assert sizes(6) == [1, 2, 4, 6]
    assert sizes(16) == [1, 2, 4, 8, 16]


def test_a_curve_by_hand():
    prompts = [[Answered(1, 0), Answered(2, 1)], [Answered(5, 3), Answered(4, 1)]]
    one, two = curve(prompts, 2)
    assert (one.n, one.reward, one.truth) == (1, 3.0, 1.25)
    assert (two.n, two.reward, two.truth) == (2, 3.5, 2.0)
    # Of 2 and 5 the variance is 4.5, of the mean of two such 2.25.
    assert two.reward_error == pytest.approx(1.5)
    assert one.truth_error == pytest.approx(0.75)
    assert math.isnan(curve(prompts[:1], 1)[0].truth_error)


def test_prompts_without_enough_scored_responses_are_left_out():
    nan = math.nan
    prompts = [[Answered(1, 1), Answered(nan, 1)], [Answered(1, nan), Answered(2, 2)], [Answered(1, 1), Answered(2, 2)]]
    assert complete(prompts, 2, with_truth=True) == prompts[2:]
    assert complete(prompts, 1, with_truth=True) == [[Answered(1, 1)], [Answered(2, 2)], prompts[2]]
    assert [len(each) for each in complete(prompts, 2, with_truth=False)] == [2, 2]


def test_the_best_of_n_of_a_policy(entry, tmp_path):
    report = tmp_path / "out" / "found.json"
    chosen = (*TINY, *DIGITS, "best_of_n=4", "samples=2", f"report={report}")
    code, out, _ = entry(evaluate, *chosen, "reward_model@against=[regex]", "against.regex.pattern='[a-z]'")
    assert code == 0
    found = json.loads(report.read_text())
    assert (found["prompts"], found["responses_per_prompt"], found["against"]) == (6, 4, ["regex"])
    points = found["best_of_n"]["curve"]
    assert [point["n"] for point in points] == [1, 2, 4]
    assert points[0]["reward"] == pytest.approx(found["estimates"]["reward"], abs=1e-6)
    assert points[0]["truth"] == pytest.approx(found["estimates"]["against/reward"], abs=1e-6)
    rewards = [point["reward"] for point in points]
    assert rewards == sorted(rewards)
    assert rewards[0] < rewards[2]
    assert "best of n by regex" in out
    assert "best of 4" in out
    assert report.with_suffix(".png").stat().st_size > 1000
    code, _, errors = entry(evaluate, *chosen)
    assert (code, errors) == (2, [f"error: report={report}: {report} is there already; name another file"])


def test_more_responses_than_n_make_the_estimate_better(entry, tmp_path):
    report = tmp_path / "found.json"
    given = (*TINY, *DIGITS, "best_of_n=2", "evaluation.responses_per_prompt=5", "samples=0", f"report={report}")
    assert entry(evaluate, *given)[0] == 0
    found = json.loads(report.read_text())
    assert found["responses_per_prompt"] == 5
    assert [point["n"] for point in found["best_of_n"]["curve"]] == [1, 2]
    assert found["agreement"] is None
    assert found["best_of_n"]["curve"][0]["truth"] is None


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["best_of_n=0"], "best_of_n=0: should be greater than or equal to 1"),
        (["best_of_n=4", "evaluation.temperature=0"], "best_of_n=4: with evaluation.temperature=0 all responses"),
        (["report=found.txt"], "report=found.txt: should be a file that ends in .json"),
    ],
)
def test_mistakes_are_told_in_one_line(entry, given, said):
    code, out, errors = entry(evaluate, *TINY, *DIGITS, *given)
    assert (code, out, len(errors)) == (2, "", 1)
    assert errors[0].startswith(f"error: {said}")
