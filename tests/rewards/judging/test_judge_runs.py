"""Whole runs whose reward is a judge's."""

import csv
import json
import re

import pytest
from judge_server import MODEL, Says, Status

import tpg.evaluate
import tpg.train

SECRET = "very-own-word-27182818"
TINY = [
    *["policy=tiny", "policy.hidden_size=16", "policy.layers=1", "task=sort", "task.evaluation_size=4", "logger=[csv]"],
    *["trainer=cpu", "trainer.precision=32-true", "rollout.prompts=2", "rollout.responses_per_prompt=4"],
    *["rollout.max_response_tokens=6", "rollout.max_prompt_tokens=32", "iterations=2", "evaluation.every=2"],
    *["algorithm=rloo", "reward_workers=1", "run_dir=a"],
]


def judged_by(server, term="judge", **options):
    given = {"model": MODEL, "base_url": server.url, "cache": "null", "explain": "false", **options}
    return [f"reward_model=[{term}]", *(f"reward_model.{term}.{name}={value}" for name, value in given.items())]


def grade(asked):
    """A judge with a taste of its own."""
    response = re.search(r"\[response \w+\]\n(.*?)\n\[end of", asked, re.DOTALL)[1]
    return f'{{"score": {sum(map(ord, response)) % 11}}}'


def rows(folder):
    with (folder / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def asked_in_training(server):
    """Without the four held-out responses of the first iteration and of the final policy."""
    return len(server.bodies) - 2 * 4


def test_a_run_learns_from_a_judge_asks_once_a_response_and_tells_no_key(entry, server, monkeypatch, tmp_path):
    monkeypatch.setenv("MY_JUDGE", SECRET)
    server.key, server.answer = SECRET, grade
    code, out, err = entry(tpg.train, *TINY, *judged_by(server, api_key_env="MY_JUDGE"))
    assert (code, err) == (0, [])
    assert asked_in_training(server) == 2 * 2 * 4
    first, second = rows(tmp_path / "a")
    assert float(first["reward"]) == pytest.approx(float(first["rewards/judge/mean"]))
    assert 0 < float(first["reward"]) < 1
    assert float(first["rewards/judge/judge_tokens"]) == 8 * 120
    assert float(second["rewards/judge/judge_tokens"]) == 8 * 120
    assert float(first["eval/rewards/judge/judge_tokens"]) == 4 * 120
    final = json.loads((tmp_path / "a" / "summary.json").read_text())
    assert final["eval/rewards/judge/judge_tokens"] == 4 * 120
    assert float(first["grad_norm"]) > 0
    assert first["rewards/judge/unscored"] == second["rewards/judge/unscored"] == "0.0"
    written = [path for path in (tmp_path / "a").rglob("*") if path.is_file()]
    assert any("MY_JUDGE" in path.read_text() for path in written if path.suffix == ".yaml")
    assert not [path for path in written if SECRET.encode() in path.read_bytes()]
    assert SECRET not in out


@pytest.mark.parametrize("algorithm", ["remax", "vineppo"])
def test_what_an_estimator_asks_for_is_paid_for_too(entry, server, tmp_path, algorithm):
    server.answer = grade
    code, _, err = entry(tpg.train, *TINY, *judged_by(server), f"algorithm={algorithm}", "evaluation.every=0")
    assert (code, err) == (0, [])
    paid = [float(row["rewards/judge/judge_tokens"]) for row in rows(tmp_path / "a")]
    assert sum(paid) == 120 * len(server.bodies)
    assert min(paid) > 8 * 120


def test_a_run_goes_on_without_its_judge_and_counts_what_is_unscored(entry, server, tmp_path):
    server.answer = grade
    server.script = [*[Says('{"score": 1}')] * 12, *[Status(500)] * 8]
    code, out, err = entry(tpg.train, *TINY, *judged_by(server, retries=0))
    assert code == 0
    first, second = rows(tmp_path / "a")
    assert (first["rewards/judge/unscored"], second["rewards/judge/unscored"]) == ("0.0", "8.0")
    assert second["completions/unscored"] == "8.0"
    assert "reward_model.judge left responses unscored: status 500: no" in " ".join((out + " ".join(err)).split())


def test_a_judge_that_is_down_at_the_start_leaves_no_folder(entry, server, tmp_path):
    server.stop()
    code, _, err = entry(tpg.train, *TINY, *judged_by(server))
    assert code == 2
    (line,) = err
    assert line.startswith(f"error: reward_model.judge.base_url={server.url}: no answer (")
    assert list(tmp_path.iterdir()) == []


def test_a_key_in_the_config_is_refused_and_not_repeated(entry, server):
    given = [
        "reward_model.judge.extra_body={api_key: very-secret-word}",
        "reward_model.judge.api_key_env=sk-1234567890",
    ]
    for key in given:
        code, _, err = entry(tpg.train, *TINY, *judged_by(server), key if "env" in key else f"+{key}")
        assert code == 2
        assert key.split("=")[-1] not in err[0]


def test_pairs_are_compared_within_a_run(entry, server, tmp_path):
    server.answer = lambda asked: '{"winner": "first"}'
    code, _, err = entry(tpg.train, *TINY, *judged_by(server, "pairwise_judge"), "evaluation.responses_per_prompt=2")
    assert (code, err) == (0, [])
    for row in rows(tmp_path / "a"):
        assert float(row["reward"]) == 0.5
        assert float(row["reward_std"]) == 0


def test_held_out_responses_are_judged_by_evaluate_too(entry, server):
    server.answer = grade
    code, out, _ = entry(tpg.evaluate, *to_evaluate(), *judged_by(server), "samples=0")
    assert code == 0
    assert len(server.bodies) == 4
    assert re.search(r"rewards/judge/judge_tokens\W+480\.0000", out)


def test_what_a_judge_costs_as_the_truth_is_told_too(entry, server, tmp_path):
    server.answer = grade
    truth = [word.replace("reward_model.", "against.") for word in judged_by(server)[1:]]
    given = ["reward_model=[sorted_digits]", "reward_model@against=[judge]", *truth, "samples=0", "report=a.json"]
    code, _, err = entry(tpg.evaluate, *to_evaluate(), *given)
    assert (code, err) == (0, [])
    estimates = json.loads((tmp_path / "a.json").read_text())["estimates"]
    assert estimates["against/rewards/judge/judge_tokens"] == 4 * 120 == 120 * len(server.bodies)
    server.stop()
    code, _, err = entry(tpg.evaluate, *to_evaluate(), *given[:-1])
    assert (code, len(err)) == (2, 1)
    assert err[0].startswith(f"error: against.judge.base_url={server.url}: no answer (")


def to_evaluate():
    """What of a run's options an evaluation takes."""
    training = (
        "rollout.prompts",
        "rollout.responses",
        "iterations",
        "logger",
        "algorithm",
        "run_dir",
        "evaluation.every",
    )
    return [word for word in TINY if not word.startswith(training)]


@pytest.mark.long
def test_two_processes_ask_once_a_response(entry, server, tmp_path):
    server.answer = grade
    two = ["trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2", "trainer.precision=32-true"]
    code, _, _ = entry(tpg.train, *[word for word in TINY if not word.startswith("trainer")], *two, *judged_by(server))
    assert code == 0
    assert asked_in_training(server) == 2 * 2 * 4
    first, second = rows(tmp_path / "a")
    assert float(first["rewards/judge/judge_tokens"]) == float(second["rewards/judge/judge_tokens"]) == 8 * 120
