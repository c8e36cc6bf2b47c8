"""What a study has found."""

import matplotlib.image
import optuna
import pytest
from optuna.distributions import FloatDistribution

from tpg.reporting.search_pictures import draw_importances, draw_parallel_coordinates
from tpg.searching.outcome import importance


@pytest.mark.parametrize(("direction", "sign"), [("maximize", 1), ("minimize", -1)])
def test_importance_goes_to_the_parameter_that_the_value_depends_on(direction, sign):
    study = optuna.create_study(direction=direction)
    span = FloatDistribution(0.0, 1.0)
    for i in range(40):
        params = {"lr": (i * 7 % 40) / 40, "noise": (i * 11 % 40) / 40}
        study.add_trial(
            optuna.create_trial(params=params, distributions={"lr": span, "noise": span}, value=sign * params["lr"])
        )
    shares = importance(study, 0)
    assert shares["lr"] > 0.8
    assert sum(shares.values()) == pytest.approx(1.0)


def test_alike_trials_have_no_importance():
    study = optuna.create_study(direction="maximize")
    span = FloatDistribution(0.0, 1.0)
    for lr in (0.1, 0.5, 0.9):
        study.add_trial(optuna.create_trial(params={"lr": lr}, distributions={"lr": span}, value=0.25))
    assert importance(study, 0) == {}


def test_pictures_are_drawn_of_one_trial_and_of_equal_ones(tmp_path):
    names, listed = ["optimizer.lr", "kl", "eval/reward"], {"kl": [None, "k3_in_loss"]}
    for rows in ([[1e-5, None, 0.5]], [[1e-5, None, 0.5], [1e-5, "k3_in_loss", 0.5]]):
        path = tmp_path / "p.png"
        draw_parallel_coordinates(path, "it", names, rows, {"optimizer.lr"}, listed, "eval/reward", "maximize")
        assert matplotlib.image.imread(path).shape[2] == 4
    draw_importances(tmp_path / "i.png", "it", {"a": {"x": 0.9, "y": 0.1}, "b": {"x": 0.5, "y": 0.5}})
    assert matplotlib.image.imread(tmp_path / "i.png").shape[2] == 4
    assert sorted(path.name for path in tmp_path.iterdir()) == ["i.png", "p.png"]
