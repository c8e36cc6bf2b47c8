"""A run that is stopped anywhere and continued gives the numbers of the run that was not."""

import json
import random
import signal
from concurrent.futures import ThreadPoolExecutor

import pytest
from processes import TINY, has_rows, interrupted, reproducible, resume, rows, train

RUN = [
    *TINY,
    *["warm_start=supervised", "warm_start.steps=20", "iterations=6", "checkpoint.every=2", "estimator=reinforce_ema"],
    *["optimizer.warmup_steps=2", "objective=ppo_clip"],
    *["update.epochs=2", "update.responses_per_minibatch=8", "update.responses_per_microbatch=3"],
]
LAGGED = ["rollout.lag=1", "mismatch=sequence_truncate", "optimizer.schedule=cosine"]
LATE = random.SystemRandom().uniform(0.0, 0.4)


def checkpoints(folder):
    return sorted(path.name for path in (folder / "checkpoints").iterdir())


def stopped_and_resumed(folder, number, when, delay=0.0, overrides=()):
    interrupted(folder, [*RUN, *overrides], number, when, delay)
    left = {"rows": len(rows(folder)), "checkpoints": checkpoints(folder)}
    resume(folder)
    return folder, left


def terminated(folder):
    # Every checkpoint of this run is due to the signal, or to the end.
    overrides = ["checkpoint.every=100", "checkpoint.keep_last=5"]
    return stopped_and_resumed(folder, signal.SIGTERM, has_rows(3), overrides=overrides)


def lagged(folder):
    return stopped_and_resumed(folder, signal.SIGTERM, has_rows(3), overrides=[*LAGGED, "checkpoint.every=100"])


def longer(folder):
    train(folder, *RUN, "iterations=4")
    return resume(folder, "iterations=6")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Every scenario, two at a time."""
    root = tmp_path_factory.mktemp("runs")
    with ThreadPoolExecutor(2) as pool:
        yield {
            "whole": pool.submit(train, root / "whole", *RUN),
            "killed": pool.submit(stopped_and_resumed, root / "killed", signal.SIGKILL, has_rows(4), LATE),
            "terminated": pool.submit(terminated, root / "terminated"),
            "lagged": pool.submit(train, root / "lagged", *RUN, *LAGGED),
            "lagged, terminated": pool.submit(lagged, root / "lagged_terminated"),
            "interrupted": pool.submit(interrupted, root / "interrupted", RUN, signal.SIGINT, has_rows(2)),
            "longer": pool.submit(longer, root / "longer"),
        }


def assert_same(folder, other):
    assert reproducible(folder) == reproducible(other)
    assert (folder / "completions.jsonl").read_bytes() == (other / "completions.jsonl").read_bytes()
    for file in (folder / "tokens").iterdir():  # not every scenario has the same checkpoints, and thus records
        assert file.read_bytes() == (other / "tokens" / file.name).read_bytes()
    weights = "policy/model.safetensors"
    assert (folder / weights).read_bytes() == (other / weights).read_bytes()
    last, expected = (json.loads((place / "summary.json").read_text()) for place in (folder, other))
    assert last["iterations"] == expected["iterations"]
    assert last["num_tokens"] == expected["num_tokens"]
    assert last["eval/reward"] == expected["eval/reward"]


def test_the_uninterrupted_run_learns_from_every_iteration_once(runs):
    folder = runs["whole"].result()
    table = rows(folder)
    assert [row["iteration"] for row in table] == ["1", "2", "3", "4", "5", "6"]
    assert [bool(row["eval/reward"]) for row in table] == [True, False] * 3
    assert all(float(row["grad_norm"]) > 0 and float(row["reward_std"]) > 0 for row in table)
    iterations = [json.loads(line)["iteration"] for line in (folder / "completions.jsonl").open()]
    assert iterations == [iteration for iteration in range(1, 7) for _ in range(16)]
    assert checkpoints(folder) == ["iteration-000006.ckpt"]


def test_killed_at_a_random_moment(runs):
    # Moments that are chosen are in tests/killing.
    folder, left = runs["killed"].result()
    print(f"killed {LATE:.3f} s after the fourth row; {left}")
    assert_same(folder, runs["whole"].result())
    assert sorted(file.name for file in (folder / "tokens").iterdir()) == [
        f"iteration-{iteration:06d}.jsonl" for iteration in (1, 2, 4, 6)
    ]


def test_sigterm_leaves_the_last_boundary_and_exit_code_143(runs):
    folder, left = runs["terminated"].result()
    assert 3 <= left["rows"] < 6
    assert left["checkpoints"] == [f"iteration-{left['rows']:06d}.ckpt"]
    assert_same(folder, runs["whole"].result())


def test_a_rollout_made_ahead_is_continued_from(runs):
    folder, left = runs["lagged, terminated"].result()
    assert left["checkpoints"] == [f"iteration-{left['rows']:06d}.ckpt"]
    whole = runs["lagged"].result()
    assert reproducible(folder) == reproducible(whole)
    weights = "policy/model.safetensors"
    assert (folder / weights).read_bytes() == (whole / weights).read_bytes()
    assert [float(row["rollout/staleness"]) for row in rows(folder)] == [0.0, *[1.0] * 5]


def test_sigint_leaves_exit_code_130_and_says_how_to_continue(runs):
    folder = runs["interrupted"].result()
    assert checkpoints(folder)
    assert f"resume={folder}" in folder.with_name(folder.name + ".log").read_text()
    assert not (folder / "policy").exists()


def test_a_finished_run_goes_on_with_more_iterations(runs):
    folder = runs["longer"].result()
    assert [row["iteration"] for row in rows(folder)] == [str(iteration) for iteration in range(1, 7)]
    assert_same(folder, runs["whole"].result())
