"""Runs by method: final performance, efficiency, cost, ablation, warnings."""

import math

import pytest
from made_runs import completion, config, grpo, make_run, rows
from token_lines import write

from tpg.errors import UserError
from tpg.reporting.comparing.analysis import analyse
from tpg.reporting.comparing.concerns import concerns
from tpg.reporting.comparing.examples import LONGEST, examples, shown, token_view
from tpg.reporting.comparing.options import ReportOptions
from tpg.reporting.comparing.runs import find_runs
from tpg.reporting.comparing.statistics import BOOTSTRAP


@pytest.fixture
def report(tmp_path):
    """The report of runs given as (config, rows, finished), by default without held-out rewards."""

    def make(*runs, finals=None, **options):
        for i, (made, its_rows, *finished) in enumerate(runs):
            final = finals[i] if finals else None
            make_run(tmp_path / f"run{i}", made, its_rows, final=final, finished=not finished)
        asked = ReportOptions(runs=str(tmp_path), **options)
        return analyse(find_runs(asked.places), asked)

    return make


def test_methods_are_configs_but_for_the_seed_the_best_first(report):
    given = report(
        (config(0), rows([0.0, 0.2, 0.2, 0.3])),
        (config(1), rows([0.1, 0.2, 0.2, 0.5])),
        (grpo(0), rows([0.2, 0.3, 0.5, 0.9])),
    )
    assert [each.method.name for each in given.methods] == ["grpo", "rloo"]
    assert [[run.name for run in each.method.runs] for each in given.methods] == [["run2"], ["run0", "run1"]]
    best, other = (each.performance for each in given.methods)
    assert (best.mean.value, best.mean.kind) == (0.9, "one run")
    assert (other.mean.value, other.mean.low, other.mean.high, other.mean.kind) == (0.4, 0.3, 0.5, "range of 2 runs")
    (duel,) = given.improvements
    assert (duel.better, duel.worse, duel.probability.value) == ("grpo", "rloo", 1.0)


def test_the_final_training_reward_is_that_of_the_last_tenth(report):
    given = report((config(iterations=20), rows([0.0] * 18 + [0.4, 0.6])))
    assert given.measure == "reward"
    assert given.methods[0].performance.scores == [0.5]


def test_the_final_held_out_reward_counts_where_every_run_has_one(report):
    held_out = {"eval/reward": [0.1, "", 0.3, ""]}
    finished = (config(0), rows([0.5] * 4, **held_out))
    given = report(finished, (config(1), rows([0.5] * 4, **held_out), "unfinished"), finals=[0.7, None])
    assert given.measure == "eval/reward"
    assert given.methods[0].performance.scores == [0.7, 0.3]


def test_three_seeds_have_a_bootstrap_interval(report):
    given = report(*((config(seed), rows([0.0, 0.1, 0.2, reward])) for seed, reward in enumerate([0.2, 0.4, 0.9])))
    mean = given.methods[0].performance.mean
    assert (mean.value, mean.low, mean.high) == pytest.approx((0.5, 0.2, 0.9))
    assert mean.kind == BOOTSTRAP


def test_tasks_are_strata_of_a_method_that_is_averaged_over_them(report):
    runs = [
        (make(seed, choices__task=task, task={"name": task}), rows([0.0, 0.0, 0.0, reward]))
        for make, task, rewards in (
            (config, "sort", (0.2, 0.2, 0.2)),
            (config, "addition", (0.6, 0.6, 0.6)),
            (grpo, "sort", (0.3, 0.3, 0.3)),
            (grpo, "addition", (0.5, 0.5, 0.5)),
        )
        for seed, reward in enumerate(rewards)
    ]
    given = report(*runs, across=["task"])
    assert {each.method.name for each in given.methods} == {"grpo", "rloo"}
    for each in given.methods:
        mean = each.performance.mean
        assert (mean.value, mean.low, mean.high) == pytest.approx((0.4, 0.4, 0.4))
    assert given.improvements[0].probability.value == 0.5  # better in one of two tasks


def test_half_way_is_between_the_mean_start_and_the_best_end(report):
    # Starts 0.0 and 0.2, ends 0.4 and 1.0: half-way is (0.1 + 1.0) / 2.
    slow = rows([0.0, 0.2, 0.4, 0.4])
    fast = rows([0.2, 0.6, 1.0, 1.0], tokens=50)
    given = report((config(0), slow), (grpo(0), fast))
    assert given.threshold == pytest.approx(0.55)
    reached, never = (each.efficiency for each in given.methods)
    # The means of three are 0.2, 0.4, 0.6, 0.87.
    assert (reached.reached, reached.runs, reached.iterations, reached.tokens) == (1, 1, 3, 150)
    assert (never.reached, never.runs) == (0, 1)
    assert math.isnan(never.iterations)


def test_the_threshold_may_be_given_and_times_are_medians_over_runs_that_reach_it(report):
    given = report(
        (config(0), rows([0.5, 0.5, 0.5, 0.5])),
        (config(1), rows([0.0, 0.8, 0.8, 0.8])),
        (config(2), rows([0.0, 0.0, 0.0, 0.0])),
        threshold=0.4,
    )
    efficiency = given.methods[0].efficiency
    assert (efficiency.reached, efficiency.runs, efficiency.iterations, efficiency.tokens) == (2, 3, 1.5, 150)


def test_where_nothing_got_better_there_is_no_half_way(report):
    given = report((config(), rows([0.5, 0.4, 0.3, 0.2])))
    assert (given.threshold, given.methods[0].efficiency) == (None, None)


def test_costs_are_means_over_runs(report):
    given = report((config(0), rows([0.1] * 4)), (config(1), rows([0.1] * 2, tokens=400), "unfinished"))
    cost = given.methods[0].cost
    # 400 tokens in 8 seconds and 800 in 4.
    assert (cost.seconds, cost.tokens, cost.throughput) == (6, 600, 100)


def test_the_ablation_has_a_row_for_each_value_of_each_changed_key_only(report):
    given = report(
        (config(optimizer__lr=3e-5), rows([0.0, 0.0, 0.0, 0.1])),
        (config(optimizer__lr=1e-5), rows([0.0, 0.0, 0.0, 0.2])),
        (grpo(optimizer__lr=3e-5), rows([0.0, 0.0, 0.0, 0.5])),
        (grpo(optimizer__lr=1e-5), rows([0.0, 0.0, 0.0, 0.8])),
    )
    assert [(row.setting, row.value, row.runs, round(row.mean.value, 6)) for row in given.ablation] == [
        ("algorithm", "rloo", 2, 0.15),
        ("algorithm", "grpo", 2, 0.65),
        ("optimizer.lr", "1e-05", 2, 0.5),
        ("optimizer.lr", "3e-05", 2, 0.3),
    ]
    assert given.balanced


def test_an_ablation_of_some_combinations_only_says_so(report):
    given = report((config(), rows([0.1] * 4)), (grpo(optimizer__lr=1e-6), rows([0.1] * 4)))
    assert not given.balanced


def test_unfinished_runs_count_unless_they_are_not_wanted(report, tmp_path):
    runs = (config(0), rows([0.1] * 4)), (config(1), rows([0.3] * 2), "unfinished"), (config(2), [], "unfinished")
    given = report(*runs)
    assert [run.name for run in given.runs] == ["run0", "run1"]
    assert given.left_out == ["run2 (unfinished, 0 of 4 iterations)"]
    asked = ReportOptions(runs=str(tmp_path), finished_only=True)
    assert [run.name for run in analyse(find_runs(asked.places), asked).runs] == ["run0"]


def test_runs_without_a_reward_cannot_be_reported(report):
    with pytest.raises(UserError, match="none of the 1 runs has measured a reward in any iteration yet"):
        report((config(), [], "unfinished"))


def test_only_what_varies_can_be_averaged_over(report):
    with pytest.raises(UserError, match="across=task: does not vary between these runs; what does: algorithm"):
        report((config(), rows([0.1] * 4)), (grpo(), rows([0.1] * 4)), across=["task"])


def test_every_kind_of_warning(tmp_path):
    nan = math.nan
    raised = {
        "fine": rows([0.1, 0.2, 0.3, 0.4], **{"completions/clipped_ratio": [0.05] * 4}),
        "broken": rows([0.1, 0.2, 0.3, 0.4], loss=[0.1, nan, 0.1, 0.1], grad_norm=[1.0, 1.0, math.inf, 1.0]),
        "unscored": [{**row, "completions/unscored": 2} for row in rows([0.1, 0.2, 0.3, 0.4])],
        "cut": rows([0.1, 0.2, 0.3, 0.4], **{"completions/clipped_ratio": [0.0, 0.4, 0.2, 0.2]}),
        "equal": rows([0.1, 0.2, 0.3, 0.4], frac_reward_zero_std=[0.5, 0.5, 0.75, 0.75]),
        "clipped": rows([0.1, 0.2, 0.3, 0.4], **{"clip_ratio/region_mean": [0.3] * 4}),
        "apart": rows([0.1, 0.2, 0.3, 0.4], **{"mismatch/ess": [0.25] * 4}),
        "worse": rows([0.5, 0.4, 0.3, 0.2, 0.1]),
    }
    for name, made in raised.items():
        make_run(tmp_path / name, config(), made)
    make_run(tmp_path / "stopped", config(), rows([0.1]), finished=False)
    said = {run: text for each in concerns(find_runs([str(tmp_path)]).runs) for run, text in each.runs.items()}
    assert said == {
        "broken": "2 of 4 iterations, from iteration 2 on",
        "unscored": "8 responses",
        "cut": "20% truncated",
        "equal": "62% of the groups",
        "clipped": "30% of the tokens",
        "apart": "effective sample size 25%",
        "worse": "0.500 → 0.100",
        "stopped": "1 of 4 iterations",
    }


def test_the_best_the_worst_and_the_unscored_completions(tmp_path):
    lines = [
        completion(1.0, "long ago", iteration=1),
        completion(0.9, "good", iteration=9),
        completion(0.9, "good", iteration=10),
        completion(0.9, "as good but earlier", iteration=8),
        completion(0.5, "middling", iteration=9),
        completion(0.0, "bad", iteration=10),
        completion(None, "unscored long ago", iteration=1),
        completion(math.nan, "unscored", iteration=7),
    ]
    folder = make_run(tmp_path / "a", config(), rows([0.1] * 10), lines)
    with (folder / "completions.jsonl").open("ab") as file:
        file.write(b'{"iteration": 10, "resp\xc3')
    given = examples(find_runs([str(tmp_path)]).runs, 2)
    assert [(each.response, each.iteration) for each in given.best] == [("good", 10), ("as good but earlier", 8)]
    assert [each.response for each in given.worst] == ["bad", "middling"]
    assert [(each.response, each.reward) for each in given.unscored] == [
        ("unscored", None),
        ("unscored long ago", None),
    ]
    assert given.unreadable == 1


def test_of_few_completions_half_are_best_and_half_are_worst(tmp_path):
    lines = [completion(reward, f"response {reward}") for reward in (0.5, 1.0, 0.0)]
    make_run(tmp_path / "a", config(), rows([0.1] * 4), lines)
    given = examples(find_runs([str(tmp_path)]).runs, 3)
    assert [each.reward for each in given.best] == [1.0, 0.5]
    assert [each.reward for each in given.worst] == [0.0]


def test_every_character_of_a_completion_can_be_seen_and_stored():
    assert shown("a\x00b\x1b[1m\n\tc") == "a␀b␛[1m\n⇥c"
    assert shown("\ud800 \u202e") == "\\ud800 \\u202e"
    assert shown(None) == "null"
    assert shown("x" * (LONGEST + 5)) == "x" * LONGEST + "… (5 more characters)"


def test_the_last_recorded_tokens_are_shown_of_the_group_with_the_largest_weight(tmp_path):
    folder = make_run(tmp_path / "a", config(), rows([0.1] * 4))
    runs = find_runs([str(tmp_path)]).runs
    assert token_view(runs) is None
    write(folder, 2)
    file = write(folder, 4)
    view = token_view(runs)
    assert view.caption == "a, iteration 4: the group with the largest weight"
    assert [(group.prompt, len(group.shown)) for group in view.groups] == [("sort 54:", 2)]  # weights 1.0 and 0.125
    file.write_text("{")
    assert "is no record of tokens" in token_view(runs).caption


def test_methods_whose_short_names_are_alike_are_told_apart(report):
    paths = ["/a" + "x" * 40 + f"{i}" + "y" * 40 for i in range(2)]
    given = report(*((config(policy__path=path), rows([0.1] * 4)) for path in paths))
    names = sorted(each.method.name for each in given.methods)
    assert names == [f"path=/a{'x' * 10}…{'y' * 18}", f"path=/a{'x' * 10}…{'y' * 18} #2"]
