"""The claims of `experiment=theorem/...`, each on a few worlds."""

from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from tpg.audit.rows import Names, audit
from tpg.composition import to_experiment

CONF = Path(__file__).parents[2] / "conf"
FILES = sorted((CONF / "experiment" / "theorem").glob("*.yaml"))


def rows(name, *overrides):
    """By estimator and the value that is varied."""
    with initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
        config = compose("train", overrides=[f"experiment=theorem/{name}", "audit.worlds=3", *overrides])
    keep = [key for key in config if key not in ("run_dir", "resume")]
    made = to_experiment(OmegaConf.masked_copy(config, keep))
    made.check_method()
    names = Names("policy_gradient", "sequence_sum", "none", "none")
    found = audit(made.audit.estimators, made.method, made.rollout.sampling, names, made.audit)
    return {(row.estimator, *row.varied.values()): row.judgement for row in found}


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_each_says_what_it_shows_and_how_it_is_run(file):
    lines = file.read_text().splitlines()
    assert lines[0] == "# @package _global_"
    assert lines[1].startswith(("# (a) ", "# (b) ", "# (c) ", "# (d) ", "# (e) ", "# (f) "))
    assert "arXiv" in lines[1]
    assert f"python -m tpg.audit experiment=theorem/{file.stem}" in lines[2]


def test_response_level_rewards_equal_token_level_ones_in_expectation_not_in_variance():
    found = {name: judgement for (name,), judgement in rows("token_rewards").items()}
    assert all(judgement.exact for judgement in found.values())
    noise = [found[name].trace_covariance for name in ("R", "token rewards to go", "R - V(prefix)", "Q - V")]
    assert noise == sorted(noise, reverse=True)
    assert noise[0] > 1.2 * noise[1]


def test_the_discount_cancels_and_the_wrong_formula_is_biased():
    found = rows("discount", "audit.vary={discount: [1.0, 0.7]}")
    assert found["R", 1.0].exact
    assert found["R", 0.7].exact
    wrong = [judgement for (name, _), judgement in found.items() if name != "R"]
    assert all(0.1 < judgement.relative_bias < 0.25 for judgement in wrong)


def test_the_group_mean_lowers_the_variance_and_the_deviation_biases():
    found = rows(
        "group_statistics", "audit.vary={success_rate: [0.8]}", "audit.responses_per_prompt=2", "audit.worlds=2"
    )
    judged = {name: judgement for (name, _), judgement in found.items()}
    assert judged["R"].exact
    assert judged["R - mean of the others"].exact
    assert judged["R - mean of the others"].trace_covariance < 0.7 * judged["R"].trace_covariance
    assert judged["R - mean"].exact_direction
    assert judged["R - mean"].scale == pytest.approx(0.5)
    assert not judged["(R - mean) / std"].exact_direction or judged["(R - mean) / std"].scale != pytest.approx(0.5)


def test_interpolated_trepo_is_biased_and_its_weighted_form_is_not():
    found = rows("trepo", "audit.vary={reward: [dense]}", "audit.horizon=3", "audit.worlds=2")
    judged = {name: judgement for (name, _), judgement in found.items()}
    for positions in ("1 position", "2 positions"):
        assert judged[f"inverse probability, {positions}"].exact
        assert not judged[f"interpolate, {positions}"].exact_direction
    assert judged["every position"].exact


def test_lambda_1_is_exact_for_any_critic_and_below_only_for_an_exact_one():
    found = rows("critic", "audit.vary={critic_error: [0.0, 1.0]}")
    assert all(found[name, 0.0].exact for name in ("lambda 0", "lambda 0.5", "lambda 0.95", "lambda 1"))
    assert found["lambda 1", 1.0].exact
    bias = [found[name, 1.0].relative_bias for name in ("lambda 0", "lambda 0.5", "lambda 0.95")]
    assert bias == sorted(bias, reverse=True)
    assert bias[-1] > 0.01


def test_a_critic_wins_per_token_and_continuations_win_per_update():
    found = rows("where_decided", "audit.vary={reward: [dense, first]}")
    assert all(judgement.exact for judgement in found.values())
    for reward in ("dense", "first"):
        of = {name: judgement for (name, kind), judgement in found.items() if kind == reward}
        assert min(of, key=lambda name: of[name].noise_per_token) == "gae, lambda 1"
        assert min(of, key=lambda name: of[name].noise_per_update) == "segments of 1 token, 4 continuations"
