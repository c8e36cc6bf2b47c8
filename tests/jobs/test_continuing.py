"""What may be given beside `resume=`, and what stays as the run began with."""

import pytest
from omegaconf import OmegaConf

from tpg.errors import UserError
from tpg.jobs.continuing import continued_config, continued_run

STORED = {
    "seed": 1,
    "iterations": 5,
    "update": {"tokens_per_microbatch": 64, "epochs": 2},
    "trainer": {
        "accelerator": "cpu",
        "strategy": "single",
        "devices": 1,
        "num_nodes": 1,
        "tensor_parallel": None,
        "timeout_s": 60,
        "precision": "32-true",
        "gradient_clip_val": 0.5,
    },
    "guards": {
        "x": {"metric": "reward", "above": 1.0, "below": 0.1},
        "y": {"metric": "kl", "above": 9.0},
    },
}
GIVEN = {
    "seed": 7,
    "iterations": 20,
    "update": {"tokens_per_microbatch": 32, "epochs": 9},
    "trainer": {
        "accelerator": "auto",
        "strategy": "ddp",
        "devices": 2,
        "num_nodes": 3,
        "tensor_parallel": None,
        "timeout_s": 1800,
        "precision": "auto",
        "gradient_clip_val": 1.0,
    },
    "guards": {"x": {"metric": "entropy", "above": 3.0}, "z": {"metric": "entropy", "below": 0.2}},
}


@pytest.fixture
def continued(tmp_path):
    """What changes, by key of the first level, with these overrides beside `resume=`."""
    (tmp_path / "config.yaml").write_text(OmegaConf.to_yaml(OmegaConf.create(STORED)))

    def call(*overrides, **given):
        found = continued_config(tmp_path / "config.yaml", OmegaConf.create({**GIVEN, **given}), overrides)
        assert found.keys() == STORED.keys()
        return {key: value for key, value in found.items() if value != STORED[key]}

    return call


def test_nothing_changes_by_itself(continued):
    assert continued("resume=run") == {}


def test_iterations_and_the_memory_of_a_step_change_alone(continued):
    assert continued("resume=run", "iterations=20", "update.tokens_per_microbatch=32") == {
        "iterations": 20,
        "update": {"tokens_per_microbatch": 32, "epochs": 2},
    }


@pytest.mark.parametrize("overrides", [("trainer=ddp", "trainer.devices=2"), ("trainer.devices=2", "trainer=ddp")])
def test_another_trainer_gives_its_devices_and_keeps_precision_and_clipping(continued, overrides):
    assert continued("resume=run", *overrides) == {
        "trainer": {**GIVEN["trainer"], "precision": "32-true", "gradient_clip_val": 0.5}
    }


def test_devices_alone_keep_the_rest(continued):
    assert continued("trainer.devices=2") == {"trainer": {**STORED["trainer"], "devices": 2}}


@pytest.mark.parametrize("key", ["seed=7", "trainer.precision=auto", "update.epochs=9", "~trainer.gradient_clip_val"])
def test_what_would_change_numbers_is_refused(continued, key):
    with pytest.raises(UserError, match=rf"^{key.lstrip('~').split('=')[0]}: resume continues with the run's own"):
        continued("resume=run", key)


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("~guards.x.above", {"x": {"metric": "reward", "below": 0.1}, "y": STORED["guards"]["y"]}),
        ("~guards.x.above=1.0", {"x": {"metric": "reward", "below": 0.1}, "y": STORED["guards"]["y"]}),
        ("~guards.x", {"y": STORED["guards"]["y"]}),
        ("guards.x.above=3.0", {"x": {**STORED["guards"]["x"], "above": 3.0}, "y": STORED["guards"]["y"]}),
        ("+guards.z={metric: entropy, below: 0.2}", {**STORED["guards"], "z": GIVEN["guards"]["z"]}),
        ("guards=default", GIVEN["guards"]),
    ],
    ids=["delete-bound", "delete-bound-with-value", "delete", "change", "add", "option"],
)
def test_guards_change_where_an_override_says(continued, override, expected):
    assert continued("resume=run", override) == {"guards": expected}


@pytest.mark.parametrize("override", ["~guards.x.patience", "~guards.other", "~guards.other.above"])
def test_deleting_what_the_run_has_not_changes_nothing(continued, override):
    assert continued("resume=run", override) == {}


def test_a_folder_without_a_run_is_told_of(tmp_path):
    with pytest.raises(UserError, match=r"^resume=.*nope holds no run: there is no config.yaml in it$"):
        continued_run(OmegaConf.create({"resume": str(tmp_path / "nope")}), [])
