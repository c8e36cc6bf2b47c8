"""Samplers: the same proposals whoever asks, and every combination of a grid once."""

import optuna
import pytest

from tpg.errors import UserError
from tpg.searching.parameters import Categorical, Float, Int
from tpg.searching.samplers import TPE, CmaEs, Grid, Random

NUMBERS = {"x": Float(low=-1.0, high=1.0), "n": Int(low=1, high=9)}
MIXED = {**NUMBERS, "kind": Categorical(values=["a", "b", "c"])}


def proposals(sampler, parameters, stops, trials=12):
    """Parameters of the trials of a study that is opened again after every so many."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(direction="maximize")
    distributions = {key: parameter.distribution() for key, parameter in parameters.items()}
    for number in range(trials):
        if number % stops == 0:
            study.sampler = sampler.build(parameters)
        trial = study.ask(distributions)
        value = -((trial.params["x"] - 0.3) ** 2) + (trial.params.get("kind") == "b") if "x" in trial.params else 0.0
        study.tell(trial, value)
    return [trial.params for trial in study.get_trials()]


@pytest.mark.parametrize(
    ("sampler", "parameters"),
    [
        (TPE(seed=3, startup_trials=4, multivariate=True), MIXED),
        (TPE(seed=3, startup_trials=4, multivariate=False), MIXED),
        (Random(seed=3), MIXED),
        (CmaEs(seed=3, startup_trials=2), NUMBERS),
    ],
    ids=["tpe", "tpe_univariate", "random", "cmaes"],
)
@pytest.mark.filterwarnings("ignore")
def test_a_seed_fixes_the_proposals_however_often_the_study_is_opened(sampler, parameters):
    whole = proposals(sampler, parameters, stops=12)
    assert proposals(sampler, parameters, stops=1) == whole
    assert len({tuple(params.items()) for params in whole}) == 12
    other = type(sampler)(**{**vars(sampler), "seed": 4})
    assert proposals(other, parameters, stops=12)[0] != whole[0]


@pytest.mark.filterwarnings("ignore")
def test_tpe_goes_to_where_it_was_good():
    found = proposals(TPE(seed=0, startup_trials=6, multivariate=True), MIXED, stops=40, trials=40)
    assert sum(params["kind"] == "b" for params in found[20:]) >= 10
    assert sum(abs(params["x"] - 0.3) < 0.3 for params in found[20:]) >= 10


def test_a_grid_visits_every_combination_once_in_order():
    parameters = {"x": Float(low=0.0, high=1.0, points=2), "kind": Categorical(values=["a", "b", "c"])}
    assert Grid().limit(parameters) == 6
    assert [(params["x"], params["kind"]) for params in proposals(Grid(), parameters, stops=2, trials=6)] == [
        (0.0, "a"), (0.0, "b"), (0.0, "c"), (1.0, "a"), (1.0, "b"), (1.0, "c"),
    ]  # fmt: skip


def test_a_grid_passes_over_repetitions():
    """A trial that repeats another takes no combination away."""
    parameters = {"kind": Categorical(values=["a", "b", "c"])}
    study = optuna.create_study(sampler=Grid().build(parameters))
    distributions = {"kind": parameters["kind"].distribution()}
    study.ask(distributions)
    study.enqueue_trial({"kind": "a"}, user_attrs={"repeats": 0})
    assert [study.ask(distributions).params["kind"] for _ in range(3)] == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("sampler", "parameters", "objectives", "told"),
    [
        (Grid(), NUMBERS, 1, "sweep.parameters.x: a grid needs points=..., the number of values to visit"),
        (
            CmaEs(seed=0, startup_trials=1),
            MIXED,
            1,
            "sweep/sampler=cmaes: searches numbers, and kind is a list; use sweep/sampler=tpe",
        ),
        (
            CmaEs(seed=0, startup_trials=1),
            {"x": NUMBERS["x"]},
            1,
            "sweep/sampler=cmaes: needs two parameters or more; use sweep/sampler=tpe",
        ),
        (
            CmaEs(seed=0, startup_trials=1),
            NUMBERS,
            2,
            "sweep/sampler=cmaes: has one objective only; use sweep/sampler=tpe",
        ),
    ],
)
def test_what_a_sampler_cannot_search_is_refused(sampler, parameters, objectives, told):
    with pytest.raises(UserError) as refused:
        sampler.check(parameters, objectives)
    assert str(refused.value) == told
