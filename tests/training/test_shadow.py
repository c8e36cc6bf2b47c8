"""Shadow estimators against gradients of their own, and the mistakes that are told before anything is loaded."""

import math

import pytest
import torch
from hydra import compose, initialize_config_dir
from iterations import ENGINE, gradients, token_reward, trained, weights
from omegaconf import OmegaConf
from test_configs import CONF, experiment
from torch.testing import assert_close

from tpg.composition import to_experiment, with_shadow_options
from tpg.errors import UserError
from tpg.estimators.group import GRPO, GroupMean
from tpg.estimators.otb import OTB
from tpg.estimators.reinforce import Reinforce, ReinforceEMA
from tpg.estimators.remax import ReMax
from tpg.estimators.rloo import RLOO
from tpg.estimators.segment import Segment
from tpg.objectives.ppo_clip import PPOClip
from tpg.policies.sketch import output_layer
from tpg.rollouts.transformers import Transformers
from tpg.training import shadow
from tpg.training.options import Update
from tpg.training.shadow import Shadows, check_shadows, compared


def test_one_gradient_against_another():
    trained_KD = torch.tensor([[2.0, 0.0], [0.0, 0.0]])
    shadow_KD = torch.tensor([[3.0, 0.0], [0.0, 3.0]])
    # Sums [2, 0] and [3, 3]; about their means [1, 0] and [1.5, 1.5] they spread by 2 and by 9.
    assert compared(shadow_KD, trained_KD) == {
        "cosine": pytest.approx(1 / math.sqrt(2)),
        "scale": pytest.approx(1.5),
        "variance_ratio": pytest.approx(4.5),
    }


def test_what_cannot_be_compared_is_no_number():
    nothing = compared(torch.ones(2, 2), torch.zeros(2, 2))
    assert all(math.isnan(value) for value in nothing.values())
    alone = compared(torch.ones(1, 2), torch.ones(1, 2))
    assert alone["cosine"] == pytest.approx(1.0)
    assert math.isnan(alone["variance_ratio"])


def shadowed(tmp_path, estimators, **options):
    return trained(tmp_path, callbacks=[Shadows(estimators)], **options)


def named(module, name):
    prefix = f"shadow/{name}/"
    return {key.removeprefix(prefix): value for key, value in module.metrics.items() if key.startswith(prefix)}


@pytest.mark.parametrize("options", [{}, {"objective": PPOClip(), "update": Update(responses_per_microbatch=3)}])
def test_the_trained_estimator_is_its_own_shadow_and_the_group_mean_its_smaller_one(tmp_path, options):
    module = shadowed(tmp_path, {"rloo": RLOO(), "group_mean": GroupMean(), "reinforce": Reinforce()}, **options)
    assert named(module, "rloo") == pytest.approx({"cosine": 1.0, "scale": 1.0, "variance_ratio": 1.0}, rel=1e-5)
    smaller = {"cosine": 1.0, "scale": 0.75, "variance_ratio": 0.75**2}
    assert named(module, "group_mean") == pytest.approx(smaller, rel=1e-5)
    assert named(module, "reinforce")["cosine"] < 0.99
    assert module.metrics["timing_s/shadow"] > 0
    stages = sum(value for name, value in module.metrics.items() if name.startswith("timing_s/"))
    assert module.metrics["step_time"] == pytest.approx(stages)


def test_the_gradient_is_that_of_the_output_layer(tmp_path, monkeypatch):
    """Without projections, the parts of the prompts add up to autograd's gradient in an untied output layer."""
    seen = []
    monkeypatch.setattr(shadow.Projections, "random", lambda *_, seed: shadow.Projections(None, None))
    monkeypatch.setattr(shadow, "compared", lambda own_KD, trained_KD: seen.append((own_KD, trained_KD)) or {})
    module = shadowed(tmp_path, {"reinforce": Reinforce()}, dtype=torch.float64)
    fresh = trained(tmp_path, reward=lambda sample: 1.0)
    layer = output_layer(fresh.policy)
    layer.weight = torch.nn.Parameter(layer.weight.detach().clone())
    trajectories = module.experience.trajectories
    logprobs_BT = fresh.policy.statistics(trajectories, 1.0).logprobs
    rewards_BT = trajectories.rewards_B[:, None].double()
    # Half of the prompts are sketched: the first two, of four responses each.
    sketched_BT = trajectories.action_mask_BT & (torch.arange(16) < 8)[:, None]
    for found_KD, weights_BT in zip(seen[0], (rewards_BT, trajectories.weights_BT), strict=True):
        total = torch.where(sketched_BT, weights_BT * logprobs_BT, 0.0).sum() / 8
        (expected,) = torch.autograd.grad(total, layer.weight, retain_graph=True)
        assert found_KD.shape[0] == 2
        assert_close(found_KD.sum(0), expected.flatten(), rtol=0, atol=1e-6)


def test_watching_changes_no_number(tmp_path):
    plain = trained(tmp_path, iterations=2)
    watched = shadowed(tmp_path, {"grpo": GRPO(), "otb": OTB()}, iterations=2)
    assert_close(weights(watched), weights(plain), atol=1e-12, rtol=0)
    for mine, theirs in zip(gradients(watched), gradients(plain), strict=True):
        assert_close(mine, theirs, atol=1e-12, rtol=0)
    assert set(named(watched, "otb")) == {"cosine", "scale", "variance_ratio"}


def test_what_a_shadow_carries_goes_into_the_checkpoint(tmp_path):
    callback = Shadows({"ema": ReinforceEMA(decay=0.5)})
    module = trained(tmp_path, callbacks=[callback], iterations=1)
    mean = float(module.experience.trajectories.rewards_B.mean())
    assert callback.state_dict()["states"]["ema"] == pytest.approx({"sum": 0.5 * mean, "weight": 0.5})
    path = tmp_path / "last.ckpt"
    module.trainer.save_checkpoint(path)
    stored = torch.load(path, weights_only=True)["callbacks"]
    other = Shadows({"ema": ReinforceEMA(decay=0.5), "rloo": RLOO()})
    other.load_state_dict(next(state for state in stored.values() if "states" in state))
    assert other.states["ema"] == callback.states["ema"]
    assert other.states["rloo"] == {}


def test_only_the_prompts_that_were_drawn_first_are_sketched():
    group_B = torch.tensor([7, 7, 3, 3, 5, 5, 1, 1, 0, 0, 2, 2])
    assert shadow._chosen(group_B).tolist() == [True] * 4 + [False] * 8
    assert shadow._chosen(torch.zeros(3)).all()
    many = torch.arange(40).repeat_interleave(2)
    assert shadow._chosen(many).sum() == 20


def test_one_prompt_has_no_variance_over_prompts(tmp_path):
    engine = Transformers(prompts=1, responses_per_prompt=8, max_response_tokens=8)
    module = shadowed(tmp_path, {"otb": OTB(), "group_mean": GroupMean()}, engine=engine)
    found = named(module, "group_mean")
    assert found["cosine"] == pytest.approx(1.0)
    assert found["scale"] == pytest.approx(7 / 8)
    assert math.isnan(found["variance_ratio"])
    assert named(module, "otb")["cosine"] > 0.5


def test_a_greedy_baseline_shadows_one(tmp_path):
    module = shadowed(tmp_path, {"remax": ReMax(), "rloo": RLOO()}, estimator=ReMax(), reward=token_reward)
    assert named(module, "remax")["cosine"] == pytest.approx(1.0)
    assert -1 <= named(module, "rloo")["cosine"] < 1


@pytest.mark.parametrize(
    ("names", "overrides", "message"),
    [
        ("[remax]", [], "remax needs greedy responses, which estimator RLOO"),
        ("[grpo,segment]", [], "segment needs continuations, which estimator RLOO"),
        (
            "[trepo_interpolate]",
            ["estimator=segment"],
            "trepo_interpolate needs continuations, which estimator Segment",
        ),
        ("[gae]", [], "gae needs a critic's values, which estimator RLOO"),
        ("[rloo]", ["estimator=reinforce", "rollout.responses_per_prompt=1"], "rloo compares the responses to one"),
        ("[otb]", ["objective=p3o"], "otb gives each token its own weight, but objective P3O"),
        ("[grop]", [], r"shadow_estimators=grop: no such option; there are gae, .*; did you mean grpo\?"),
        ("rloo", [], r"shadow_estimators=rloo: should be a list, e.g. shadow_estimators=\[rloo\]"),
    ],
)
def test_what_cannot_be_shadowed_is_told(names, overrides, message):
    with initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
        config = compose("train", overrides=[f"shadow_estimators={names}", *overrides])
        config = OmegaConf.masked_copy(config, [key for key in config if key not in ("run_dir", "resume")])
        with pytest.raises(UserError, match=message):
            to_experiment(config).check()


def test_shadows_are_options_by_name():
    with initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
        config = compose("train", overrides=["shadow_estimators=[grpo,reinforce]", "estimator=remax"])
        stored = with_shadow_options(OmegaConf.to_container(config, resolve=True))
    assert stored["shadow_estimators"]["grpo"]["std"] == "group"
    # What was stored needs no names any more.
    made = to_experiment(OmegaConf.create({k: v for k, v in stored.items() if k not in ("run_dir", "resume")}))
    assert made.shadow_estimators == {"grpo": GRPO(), "reinforce": Reinforce()}
    made.check()


def test_a_shadow_may_ask_for_what_the_trained_estimator_asks_for():
    method = experiment("estimator=segment").method
    assert isinstance(method.estimator, Segment)
    check_shadows({"same": method.estimator, "rloo": RLOO()}, method, ENGINE.responses_per_prompt)
