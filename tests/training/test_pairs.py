"""Every estimator with every objective: it trains, or it is refused in one line."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from iterations import trained, weights
from omegaconf import OmegaConf

from tpg.composition import to_experiment
from tpg.errors import UserError
from tpg.rollouts.transformers import Transformers
from tpg.training.options import Optimizer, Update

CONF = Path(__file__).parents[2] / "conf"
NEEDED = {"gae": ["critic=separate"], "segment_delimiter": ["estimator.boundaries.token_ids=[30]"]}
ESTIMATORS = sorted(file.stem for file in (CONF / "estimator").glob("*.yaml"))
OBJECTIVES = sorted(file.stem for file in (CONF / "objective").glob("*.yaml"))
TOKEN_LEVEL = {"gae", "otb", "rl_zvp", *(name for name in ESTIMATORS if name.startswith(("segment", "trepo")))}
REFUSED = {(estimator, "p3o") for estimator in TOKEN_LEVEL}
SMALL = Transformers(prompts=2, responses_per_prompt=3, max_response_tokens=5)


@pytest.fixture(scope="module")
def options():
    """The parts of every option, composed once."""
    with initialize_config_dir(version_base="1.3", config_dir=str(CONF)):

        def experiment(*overrides):
            config = compose("train", overrides=["logger=[csv]", *overrides])
            keep = [key for key in config if key not in ("run_dir", "resume")]
            return to_experiment(OmegaConf.masked_copy(config, keep))

        estimators = {name: experiment(f"estimator={name}", *NEEDED.get(name, [])) for name in ESTIMATORS}
        objectives = {name: experiment(f"objective={name}").objective for name in OBJECTIVES}
    return estimators, objectives


@pytest.fixture(scope="module")
def untouched(tmp_path_factory):
    return weights(trained(tmp_path_factory.mktemp("untouched"), iterations=0))


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_a_pair_trains_or_is_refused(options, untouched, estimator, objective, tmp_path):
    estimators, objectives = options
    pair = replace(estimators[estimator], objective=objectives[objective])
    if (estimator, objective) in REFUSED:
        with pytest.raises(UserError, match=r"estimator: .* objective P3O needs one weight for a whole response"):
            pair.check_method()
        return
    pair.check_method()
    module = trained(
        tmp_path,
        estimator=pair.estimator,
        objective=pair.objective,
        critic=pair.critic if pair.estimator.needs_critic else None,
        engine=SMALL,
        optimizer=Optimizer(lr=1e-2),
        update=Update(epochs=2 if pair.objective.off_policy else 1, responses_per_microbatch=3),
        iterations=2,
    )
    assert module.iteration == 2
    assert len(module.recorder.gradients) == (4 if pair.objective.off_policy else 2)
    moved = weights(module)[: len(untouched)] - untouched
    assert moved.isfinite().all()
    assert moved.abs().max() > 1e-4
    assert all(math.isfinite(module.metrics[name]) for name in ("loss", "grad_norm", "reward"))
