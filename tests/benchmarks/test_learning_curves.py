"""When a curve has reached its target, what is told of several, and the command without TRL."""

import json
import sys
from dataclasses import replace

import pytest

from benchmarks.curves.curves import Curve, summary
from benchmarks.curves.options import LearningOptions
from benchmarks.curves.task import LearningTask, quickstart, sort, told
from benchmarks.learning import Learning, main, table_of

TASK = LearningTask(
    name="sort",
    method="rloo",
    model="somewhere",
    prompts=((3, 4), (5, 6, 7)),
    answers=("12", "345"),
    prompts_per_iteration=1,
    responses_per_prompt=2,
    response_tokens=4,
    trl_microbatch=2,
    learning_rate=1e-3,
    betas=(0.9, 0.99),
    clip=None,
    precision="float32",
    device="cpu",
    threads=1,
    seed=0,
)
SMALL = [
    *("tasks=[sort]", "seeds=1", "side=ours", "threads=1", "device=cpu", "max_iterations=3", "window=2"),
    "setting=[policy.hidden_size=32,policy.layers=1,warm_start.steps=2,rollout.prompts=2,rollout.responses_per_prompt=4,"
    "rollout.max_response_tokens=6,task.train_size=20]",
]


def curve(rewards, seconds=2.0, side="ours", **options):
    made = Curve(side, 0, **{"target": 0.75, "window": 2, **options})
    for reward in rewards:
        made.add({"seconds": seconds, "reward": reward, "solved": reward / 2, "tokens": 3})
    return made


@pytest.mark.parametrize(
    ("rewards", "at"),
    [
        ([], None),
        ([1.0], None),  # no mean of two yet
        ([0.5, 1.0], 2),
        ([0.7, 0.7, 0.8, 0.1], 3),
        ([0.75, 0.74, 0.75], None),
    ],
)
def test_the_first_running_mean_at_the_target(rewards, at):
    assert curve(rewards).reached_at == at


def test_a_curve_counts_its_own_seconds():
    told_of = curve([0.5, 0.5, 1.0], seconds=2.5).told()
    assert told_of["seconds"] == [2.5, 5.0, 7.5]
    assert told_of["solved"] == [0.25, 0.25, 0.5]
    assert (told_of["tokens"], told_of["iterations_to_target"], told_of["seconds_to_target"]) == (9, 3, 7.5)
    assert curve([0.5]).told()["seconds_to_target"] is None


def test_a_run_ends_at_the_target_or_a_bound():
    assert not curve([0.1, 0.1]).finished(3, 1.0)
    assert curve([0.1, 0.1]).finished(2, 1.0)
    assert curve([0.1, 0.1], seconds=30.0).finished(3, 1.0)
    assert curve([0.9, 0.9]).finished(3, 1.0)
    broken = curve([])
    broken.error = "gone"
    assert broken.finished(3, 1.0)


def test_medians_over_seeds_with_runs_that_do_not_get_there():
    slow, fast, never = [0.1] * 4 + [0.9] * 2, [0.9, 0.9], [0.1] * 3
    runs = [curve(rewards, seconds=1.0).told() for rewards in (slow, fast, never)]
    runs += [curve(rewards, seconds=4.0, side="trl").told() for rewards in (slow, slow, slow)]
    found = summary(runs)
    # The six-iteration run's means reach .75 at its last iteration.
    assert found["ours"] == {
        "runs": 3, "reached": 2, "seconds_to_target": 6.0, "iterations_to_target": 6, "seconds_per_iteration": 1.0,
    }  # fmt: skip
    assert (found["trl"]["reached"], found["trl"]["seconds_to_target"]) == (3, 24.0)
    assert (found["ratio_seconds_to_target"], found["ratio_seconds_per_iteration"]) == (4.0, 4.0)
    none = summary([curve(never).told(), curve(never, side="trl").told()])
    assert (none["ours"]["seconds_to_target"], none["ratio_seconds_to_target"]) == (None, None)
    assert none["ratio_seconds_per_iteration"] == 1.0


@pytest.mark.parametrize(
    ("response", "truncated", "expected"),
    [("1234", False, 1.0), (" 1243 ", False, 0.5), ("1234", True, 0.0), ("123", False, 0.0), ("", False, 0.0)],
)
def test_the_reward_of_sort(response, truncated, expected):
    assert sort(response, truncated, "1234") == expected


@pytest.mark.parametrize(
    ("response", "truncated", "expected"),
    [("7", False, 1.0), ("3 + 4 = 7.", False, 1.0), ("7 or 8", False, 0.0), ("7", True, 0.0), ("seven", False, 0.0)],
)
def test_the_reward_of_the_quickstart(response, truncated, expected):
    assert quickstart(response, truncated, "7") == expected


def test_the_rewards_are_the_experiments_own():
    from tpg.rewards.base import Sample
    from tpg.rewards.match import LastNumber
    from tpg.rewards.sorted_digits import SortedDigits

    for text in ("7", "8", "7.", "-7", "x 3, 7", "007", "7 ", "", "77"):
        for truncated in (False, True):
            sample = Sample(prompt="", response=text, token_ids=(1,), truncated=truncated, answer="7")
            assert quickstart(text, truncated, "7") == LastNumber(require_finished=True).score(sample)
            assert sort(text, truncated, "7") == SortedDigits().score(sample)


def test_a_task_survives_the_wire():
    assert LearningTask.from_json(TASK.to_json()) == TASK
    assert TASK.workload.prompts == ((3, 4),)
    assert told([1.0, 0.5], [3, 4]) == {"reward": 0.75, "solved": 0.5, "responses": 2, "tokens": 7}


@pytest.mark.parametrize("name", ["sort", "quickstart"])
def test_our_side_is_the_experiment_with_the_shared_reward_alone(name):
    from benchmarks.curves.ours import composed, overrides

    made = composed(overrides(replace(TASK, name=name)))
    assert [(key, term.function) for key, term in made.reward_model.items()] == [
        ("function", f"benchmarks.curves.task:{name}")
    ]
    assert (made.optimizer.lr, made.optimizer.betas, made.rollout.prompts) == (1e-3, (0.9, 0.99), 1)
    assert (made.trainer.precision, made.trainer.gradient_clip_val, made.warm_start.steps) == ("32-true", None, 0)


@pytest.mark.long
def test_ours_alone_on_a_tiny_model(tmp_path, capsys):
    assert main([*SMALL, f"run_dir={tmp_path}"]) == 0
    result = json.loads((tmp_path / "learning.json").read_text())
    (run,) = result["tasks"]["sort"]["runs"]
    assert (run["side"], run["iterations"], run["error"], run["seconds_to_target"]) == ("ours", 3, None, None)
    assert run["seconds"] == sorted(run["seconds"])
    assert run["seconds"][0] > 0
    assert all(0 <= reward <= 1 for reward in run["reward"])
    assert run["tokens"] >= 3 * 8
    assert result["tasks"]["sort"]["summary"]["ours"]["reached"] == 0
    assert result["tasks"]["sort"]["setting"]["precision"] == "float32"
    assert (tmp_path / "learning.png").stat().st_size > 5000
    assert "not reached" in capsys.readouterr().out
    assert main([*SMALL, f"run_dir={tmp_path}"]) == 2
    assert "holds a learning.json already" in capsys.readouterr().err


FAKE = """
import sys
from benchmarks.curves.protocol import served

def work(task, channel):
    side, diary = sys.argv[1:]
    channel.answer(versions={}, note=None)
    for iteration in range(1, 10):
        channel.request()
        with open(diary, "a") as file:
            file.write(side + " ")
        if side == "trl" and iteration == 4:
            raise ValueError("enough of it")
        reward = iteration / 3 if side == "ours" else 0.1
        channel.answer(seconds=1.0, reward=reward, solved=0.0, responses=2, tokens=4)

served(work)
"""


def test_sides_take_turns_until_each_is_done(tmp_path):
    script, diary = tmp_path / "fake.py", tmp_path / "diary"
    script.write_text(FAKE)
    options = LearningOptions(tasks=["sort"], side="ours", device="cpu", threads=1, window=1, max_iterations=6)
    learning = Learning(options, tmp_path, lambda text: None)
    learning.commands = {side: [sys.executable, str(script), side, str(diary)] for side in ("trl", "ours")}
    curves = learning.side_by_side(TASK)
    assert diary.read_text().split() == ["trl", "ours"] * 3 + ["trl"]
    assert curves["ours"].reached_at == 3
    assert curves["trl"].reward == [0.1] * 3
    assert curves["trl"].error == "trl: ValueError: enough of it"


def test_the_table_shows_what_was_not_reached():
    import io

    from rich.console import Console

    runs = [curve([0.9, 0.9]).told(), curve([0.1, 0.1], side="trl").told()]
    result = {"target": 0.75, "window": 2, "tasks": {"sort": {"runs": runs, "summary": summary(runs)}}}
    console = Console(width=120, file=io.StringIO())
    console.print(table_of(result))
    lines = [line for line in console.file.getvalue().splitlines() if "sort" in line]
    assert "not reached" in lines[0]
    assert "0 of 1" in lines[0]
    assert [word for word in lines[1].split() if word[0].isdigit()] == ["1", "1", "4", "2", "2"]


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("tasks=[sorting]", "tasks"),
        ("seeds=0", "seeds"),
        ("target=1.5", "target"),
        ("rollout=nativ", "rollout=nativ: no such option"),
    ],
)
def test_mistakes_end_in_one_line(argument, message, capsys, tmp_path):
    assert main([argument, "side=ours", f"run_dir={tmp_path}"]) == 2
    assert message in capsys.readouterr().err
