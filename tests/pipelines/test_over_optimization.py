"""True and learned reward over KL, by hand."""

import json
from types import SimpleNamespace

import pytest
from omegaconf import OmegaConf

from tpg.pipelines.definition import Pipeline, Stage
from tpg.pipelines.pictures import draw_pictures
from tpg.reporting.over_optimization import (
    Point,
    aligned,
    best_of_n_points,
    draw_over_optimization,
    run_points,
    smoothed,
)

METRICS = """iteration,kl,rewards/classifier/mean,rewards/hidden_reward/mean
1,0.0,1.0,4.0
2,0.5,2.0,5.0
3,1.0,nan,5.0
4,2.0,4.0,4.5
"""
REPORT = {
    "reward_model": ["classifier"],
    "against": ["hidden_reward"],
    "best_of_n": {
        "curve": [{"n": 1, "kl": 0.0, "reward": 1.5, "truth": 4.0}, {"n": 2, "kl": 0.2, "reward": 2.0, "truth": 4.25}]
    },
}


def test_points_of_a_run_are_those_where_all_was_measured(tmp_path):
    (tmp_path / "metrics.csv").write_text(METRICS)
    points = run_points(tmp_path / "metrics.csv", "classifier", "hidden_reward")
    assert points == [Point(0.0, 1.0, 4.0), Point(0.5, 2.0, 5.0), Point(2.0, 4.0, 4.5)]
    assert run_points(tmp_path / "metrics.csv", "classifier", "other") == []


def test_the_learned_reward_begins_where_the_true_one_does():
    points = [Point(0.0, 1.0, 4.0), Point(2.0, 4.0, 4.5)]
    assert aligned(points, points[0]) == [Point(0.0, 4.0, 4.0), Point(2.0, 7.0, 4.5)]


def test_a_smoothed_point_is_the_mean_of_its_neighbours_and_itself():
    points = [Point(x, 10 * x, x * x) for x in (0.0, 1.0, 2.0, 3.0)]
    assert smoothed(points, window=3) == [
        Point(0.5, 5.0, 0.5),
        Point(1.0, 10.0, 5 / 3),
        Point(2.0, 20.0, 14 / 3),
        Point(2.5, 25.0, 6.5),
    ]
    assert smoothed(points, window=1) == points


def test_best_of_n_is_read_from_a_report_that_has_the_truth(tmp_path):
    (tmp_path / "report.json").write_text(json.dumps(REPORT))
    assert best_of_n_points(tmp_path / "report.json") == [Point(0.0, 1.5, 4.0), Point(0.2, 2.0, 4.25)]
    untold = json.loads(json.dumps(REPORT))
    untold["best_of_n"]["curve"][1]["truth"] = None
    (tmp_path / "report.json").write_text(json.dumps(untold))
    assert best_of_n_points(tmp_path / "report.json") == [Point(0.0, 1.5, 4.0)]


def test_nothing_to_draw(tmp_path):
    with pytest.raises(ValueError, match="no run measured KL"):
        draw_over_optimization(tmp_path / "picture.png", {"train": []})


def made(run, weight):
    terms = {"classifier": {"weight": 1.0}, "hidden_reward": {"weight": weight}}
    (run / "train").mkdir(parents=True)
    (run / "train" / "metrics.csv").write_text(METRICS)
    (run / "train" / "config.yaml").write_text(OmegaConf.to_yaml(OmegaConf.create({"reward_model": terms})))
    (run / "best").mkdir()
    (run / "best" / "report.json").write_text(json.dumps(REPORT))
    return Pipeline(stages={"best": Stage(entry="evaluate"), "train": Stage(entry="train")})


def test_a_pipeline_draws_the_truth_that_a_run_watched(tmp_path, monkeypatch):
    drawn = SimpleNamespace(given=None)
    monkeypatch.setattr(
        "tpg.pipelines.pictures.draw_over_optimization", lambda path, *given: setattr(drawn, "given", given)
    )
    assert draw_pictures(tmp_path / "one", made(tmp_path / "one", 0.0)) == tmp_path / "one" / "over_optimization.png"
    runs, best = drawn.given
    assert [point.truth for point in runs["train"]] == [4.0, 5.0, 4.5]
    assert best[0] == Point(0.0, 1.5, 4.0)
    assert draw_pictures(tmp_path / "two", made(tmp_path / "two", 0.5)) is None


def test_the_picture_shows_what_is_true_and_what_is_learned(tmp_path):
    path = draw_pictures(tmp_path / "run", made(tmp_path / "run", 0.0))
    assert path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert len(path.read_bytes()) > 10_000
