"""What a curriculum cannot go with is told before anything is loaded."""

from dataclasses import replace
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from tpg.composition import to_experiment
from tpg.errors import UserError
from tpg.estimators.group import GRPO

CONF = Path(__file__).parents[2] / "conf"


def experiment(*overrides):
    with initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
        config = compose("train", overrides=["policy=tiny", *overrides])
    return to_experiment(
        OmegaConf.create({key: value for key, value in config.items() if key not in ("run_dir", "resume")})
    )


@pytest.mark.parametrize(
    ("overrides", "complaint"),
    [
        (["curriculum=dynamic_sampling", "estimator=reinforce"], "with estimator Reinforce; use estimator=rloo"),
        (["curriculum=dynamic_sampling", "algorithm=rl_zvp"], "with estimator RLZVP"),
        (["curriculum=dynamic_sampling", "algorithm=ppo"], "with estimator GAE"),
        (["curriculum=dynamic_sampling", "estimator=reinforce", "rollout.responses_per_prompt=1"], "per_prompt=2 or"),
        (["curriculum=dynamic_sampling", "curriculum.max_rounds=0"], "curriculum.max_rounds=0: "),
        *(
            ([f"curriculum={name}", "rollout.lag=1", "mismatch=sequence_truncate"], "use rollout.lag=0")
            for name in ("dynamic_sampling", "ghpo", "difficulty_balanced", "difficulty_ordered")
        ),
        (["curriculum=ghpo", "curriculum.solution_column=proof"], "solution_column=proof: the task does not offer"),
        (["curriculum=ghpo", "curriculum.levels=[0.5,0.25]"], "should be rising shares between 0 and 1"),
        (["curriculum=ghpo", "curriculum.levels=[0.5,1]"], "should be rising shares between 0 and 1"),
        (["curriculum=ghpo", "algorithm=vineppo"], "some of which GHPO gives as hints; use estimator=rloo"),
        (["curriculum=difficulty_ordered", "curriculum.column=level"], "column=level: the task does not offer"),
        (["curriculum=difficulty_balanced", "curriculum.explore=1.5"], "curriculum.explore=1.5: "),
        (["algorithm=p3o", "curriculum.mask_truncated=true"], "none can be left out alone"),
    ],
)
def test_what_cannot_be_ends_in_one_line(overrides, complaint):
    with pytest.raises(UserError) as caught:
        experiment(*overrides).check()
    message = str(caught.value)
    assert complaint in message
    assert "\n" not in message
    assert message.startswith("curriculum")


def test_shadows_of_another_loss_are_refused():
    made = replace(experiment("curriculum.mask_truncated=true"), shadow_estimators={"grpo": GRPO()})
    with pytest.raises(UserError, match=r"^shadow_estimators: .*mask_truncated=true"):
        made.check()


@pytest.mark.parametrize(
    "overrides",
    [
        ["curriculum=difficulty_ordered", "curriculum.column=answer", "rollout.lag=1", "mismatch=sequence_truncate"],
        ["curriculum=ghpo", "algorithm=remax"],
        ["curriculum=dynamic_sampling", "algorithm=dapo"],
    ],
)
def test_what_goes_together(overrides):
    assert [line for line in experiment(*overrides).check() if "curriculum" in line] == []


def test_what_acts_on_mixed_groups_alone_is_said():
    (line,) = [
        line
        for line in experiment("curriculum=dynamic_sampling", "algorithm=grpo").check()
        if line.startswith("curriculum")
    ]
    assert "these act on prompts of mixed rewards alone" in line


def test_solved_means_what_it_means_in_evaluation():
    assert experiment("evaluation.success_reward=0.7").curriculum.success_reward == 0.7
    assert experiment("curriculum=ghpo", "evaluation.success_reward=0.7").curriculum.success_reward == 0.7
