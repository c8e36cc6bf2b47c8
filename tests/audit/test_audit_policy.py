"""The audit on a policy: its statistics against literal numbers, and what is known of estimators."""

import math

import pytest
import torch
from test_configs import experiment

from tpg.audit.model import Rollouts, audit_policy
from tpg.audit.noise import Measured, resampled, rows_of, statistics
from tpg.errors import UserError
from tpg.estimators.boundaries import EveryTokens
from tpg.estimators.group import GRPO, GroupMean
from tpg.estimators.otb import OTB
from tpg.estimators.reinforce import Reinforce
from tpg.estimators.remax import ReMax
from tpg.estimators.rloo import RLOO
from tpg.estimators.segment import Segment
from tpg.rewards import model as reward_model
from tpg.training.preparation import Prepared, prepare

ONCE = torch.ones(1, 3, dtype=torch.float64)
NAMES = {"objective": "policy_gradient", "aggregation": "sequence_sum", "kl": "none"}


def test_the_statistics_of_three_batches():
    unbiased_ND = torch.tensor([[3.0, 0.0], [1.0, 0.0], [2.0, 3.0]])
    # Products of different batches: 3, 6, 2; their mean is the squared length. Squared lengths: 9, 1, 13.
    same = statistics(Measured(unbiased_ND, unbiased_ND, 1, 1), ONCE)
    assert float(same.mean_square) == pytest.approx(11 / 3)
    assert float(same.trace) == pytest.approx(23 / 3 - 11 / 3)
    assert float(same.scale) == float(same.cosine) == 1.0
    assert float(same.trace) == pytest.approx(float(unbiased_ND.var(0).sum()))
    # Half of it turned by the angle whose cosine is 0.6.
    turn = torch.tensor([[0.6, 0.8], [-0.8, 0.6]]) / 2
    turned = statistics(Measured(unbiased_ND @ turn, unbiased_ND, 1, 1), ONCE)
    assert float(turned.mean_square) == pytest.approx(11 / 12)
    assert float(turned.trace) == pytest.approx(1.0)
    # Opposite turns of a pair's products cancel, which leaves the cosine.
    assert float(turned.scale) == pytest.approx(0.3)
    assert float(turned.cosine) == pytest.approx(0.6)


def test_more_batches_stand_for_the_true_gradient_and_never_a_batch_for_itself():
    own_BD = torch.tensor([[1.0], [3.0]])
    unbiased_ND = torch.tensor([[2.0], [4.0], [5.0]])
    found = statistics(Measured(own_BD, unbiased_ND, 1, 1), ONCE)
    # Products 1*4, 1*5, 3*2, 3*5 against 2*4, 2*5, 4*2, 4*5.
    assert float(found.scale) == pytest.approx(30 / 46)
    assert float(found.mean_square) == pytest.approx(3.0)


def test_resamples_draw_as_many_batches_as_there_are():
    counts_SN = resampled(4, 3, seed=0)
    assert counts_SN[0].tolist() == [1.0] * 7
    assert (counts_SN[:, :4].sum(-1) == 4).all()
    assert (counts_SN[:, 4:].sum(-1) == 3).all()
    assert len(counts_SN.unique(dim=0)) > 100


def measured(scale, noise, seed=0, batches=40):
    generator = torch.Generator().manual_seed(seed)
    true_D = torch.tensor([1.0, 0.0, 0.0, 0.0], dtype=torch.float64)
    unbiased_ND = true_D + 0.5 * torch.randn(batches, 4, generator=generator, dtype=torch.float64)
    own_BD = scale * true_D + noise * torch.randn(batches, 4, generator=generator, dtype=torch.float64)
    return Measured(own_BD, unbiased_ND, 100, 8)


def test_rows_of_estimators_with_known_noise():
    quiet, loud = rows_of({"quiet": measured(2.0, 0.5), "loud": measured(1.0, 0.5)}, NAMES, seed=0)
    assert quiet["estimator"] == "quiet"
    assert quiet["objective"] == "policy_gradient"
    assert quiet["responses_for_same_noise"] == 1.0
    assert loud["responses_for_same_noise"] == pytest.approx(4.0, rel=0.4)
    # A trace of 4 * 0.25 against a squared length of 4 and of 1.
    assert quiet["trace_covariance"] == pytest.approx(1.0, rel=0.25)
    assert quiet["noise_per_update"] == pytest.approx(8 / 4, rel=0.3)
    assert quiet["noise_per_token"] == pytest.approx(quiet["noise_per_update"] * 100 / 8)
    assert loud["snr"] == pytest.approx(1.0, rel=0.4)
    for row in (quiet, loud):
        for key in ("cosine", "scale", "trace_covariance", "snr", "noise_per_token", "noise_per_update"):
            assert row[f"{key}_low"] <= row[key] <= row[f"{key}_high"]
    assert quiet["verdict"] == f"no bias of direction found, scale {quiet['scale']:.3f}; least noise"
    assert "x the responses for the least noise" in loud["verdict"]


def test_what_the_batches_leave_open_is_said():
    (row,) = rows_of({"lost": measured(0.0, 5.0, batches=6)}, NAMES, seed=0)
    assert row["verdict"] == "the signal is not clear of the noise in 6 batches; give more"
    (still,) = rows_of({"still": Measured(torch.zeros(3, 2), torch.zeros(3, 2), 1, 1)}, NAMES, seed=0)
    assert math.isnan(still["noise_per_update"])
    assert still["snr"] == 0.0


def even_tokens(sample):
    """A reward around 5 that the policy can raise."""
    return 5.0 + sum(token % 2 == 0 for token in sample.token_ids) / 4


class Rewards:
    """In place of a `RewardModel`, without its processes."""

    def to(self, device):
        pass

    def score(self, samples):
        values = [even_tokens(sample) for sample in samples]
        return reward_model.Rewards(values, [True] * len(values), {"even_tokens": values}, {}, {})

    def __enter__(self):
        return self

    def __exit__(self, *_):
        return None


SMALL = [
    *("policy=tiny", "policy.hidden_size=16", "policy.layers=1", "trainer=cpu"),
    *("task=sort", "reward_model=[sorted_digits]", "logger=[csv]"),
    *("rollout.prompts=4", "rollout.responses_per_prompt=4", "rollout.max_response_tokens=4"),
]


@pytest.fixture
def audited(monkeypatch):
    monkeypatch.setattr(Prepared, "reward_model", lambda *_: Rewards())
    torch.set_num_threads(1)

    def audit(estimators, *overrides, batches=8, **options):
        options_of_run = experiment(*SMALL, *overrides)
        rows = audit_policy(options_of_run, prepare(options_of_run), estimators, batches, **options)
        return {row["estimator"]: row for row in rows}

    return audit


def test_a_baseline_takes_out_the_noise_of_a_high_reward(audited):
    rows = audited({"reinforce": Reinforce(), "rloo": RLOO(), "group_mean": GroupMean()}, batches=12)
    assert rows["reinforce"]["trace_covariance"] > 20 * rows["rloo"]["trace_covariance"]
    assert rows["rloo"]["scale"] == pytest.approx(1.0)
    assert rows["group_mean"]["scale"] == pytest.approx(0.75)
    assert rows["group_mean"]["scale_low"] == pytest.approx(0.75)
    assert rows["group_mean"]["cosine"] == pytest.approx(rows["rloo"]["cosine"])
    assert rows["group_mean"]["responses_for_same_noise"] == pytest.approx(1.0)
    assert rows["group_mean"]["trace_covariance"] == pytest.approx(0.75**2 * rows["rloo"]["trace_covariance"])
    assert rows["rloo"]["objective"] == "PolicyGradient"
    assert rows["rloo"]["responses"] == 16
    assert 16 <= rows["rloo"]["generated_tokens"] <= 64


def test_more_reference_batches_are_the_stand_in_s_alone(audited):
    rows = audited({"rloo": RLOO()}, batches=3, reference_batches=4)
    assert rows["rloo"]["batches"] == 3
    assert rows["rloo"]["scale"] == pytest.approx(1.0)


def test_every_kind_of_request_is_answered_and_its_tokens_counted(audited):
    estimators = {
        "rloo": RLOO(),
        "remax": ReMax(),
        "otb": OTB(),
        "segment": Segment(boundaries=EveryTokens(tokens=2), continuations=2),
    }
    rows = audited(estimators, batches=3)
    plain = rows["rloo"]["generated_tokens"]
    assert rows["otb"]["generated_tokens"] == plain
    assert plain < rows["remax"]["generated_tokens"] <= plain + 4 * 4 + 1e-9
    assert rows["segment"]["generated_tokens"] > 1.5 * plain
    assert all(row["trace_covariance"] > 0 for row in rows.values())


def test_what_trains_is_what_is_audited(audited):
    """The objective, the aggregation and the divergence come in; only the stand-in does without them."""
    plain = audited({"grpo": GRPO()}, batches=2)["grpo"]
    shorter = audited({"grpo": GRPO()}, "aggregation=constant", batches=2)["grpo"]
    assert shorter["trace_covariance"] == pytest.approx(plain["trace_covariance"] / 16)
    assert shorter["aggregation"] == "Constant"
    penalised = audited({"grpo": GRPO()}, "kl=k3_in_loss", batches=2)["grpo"]
    assert penalised["kl"] == "KLInLoss"


def test_batch_gradients_of_group_mean_and_rloo_point_the_same_way(monkeypatch):
    options = experiment(*SMALL)
    estimators = {"rloo": RLOO(), "group_mean": GroupMean(), "reinforce": Reinforce()}
    prepared = prepare(options)
    engine = options.rollout.build(prepared.policy)
    rollouts = Rollouts(options, engine, prepared, Rewards(), estimators)
    with torch.no_grad():
        batch = rollouts.draw(1, for_all=True)
    again = rollouts.draw(1, for_all=False)
    gradients = {name: gradient_D for name, (gradient_D, _) in batch.estimates.items()}
    cosines = {name: float(torch.cosine_similarity(g, batch.unbiased_D, dim=0)) for name, g in gradients.items()}
    assert cosines["rloo"] == pytest.approx(1.0, abs=1e-6)
    assert cosines["group_mean"] == pytest.approx(1.0, abs=1e-6)
    assert cosines["reinforce"] < 0.9
    assert again.estimates == {}
    assert torch.allclose(again.unbiased_D, batch.unbiased_D, atol=1e-7)


def test_one_batch_shows_no_noise(audited):
    with pytest.raises(UserError, match=r"audit.batches=1: noise shows between batches; give at least 2"):
        audited({"rloo": RLOO()}, batches=1)


def test_a_group_that_is_too_small_is_told(audited):
    with pytest.raises(UserError, match=r"rollout.responses_per_prompt=1: rloo compares the responses to one prompt"):
        audited({"rloo": RLOO()}, "estimator=reinforce", "rollout.responses_per_prompt=1")


def test_rewards_by_comparison_are_held_against_the_weighted_sum():
    """The stand-in is the gradient of the expected sum, whatever the combination makes of it."""
    found = {}
    for combination in ("weighted_sum", "rank", "gdpo"):
        letters = ("reward_model=[regex]", "reward_model.regex.pattern='[a-m]'", "reward_workers=1")
        options = experiment(*SMALL, *letters, f"combination={combination}")
        prepared = prepare(options)
        engine = options.rollout.build(prepared.policy)
        with prepared.reward_model(options) as rewards, torch.no_grad():
            found[combination] = Rollouts(options, engine, prepared, rewards, {"rloo": RLOO()}).draw(1, for_all=True)
    plain = found.pop("weighted_sum")
    assert plain.unbiased_D.norm() > 0
    assert torch.allclose(plain.unbiased_D, plain.estimates["rloo"][0])
    for batch in found.values():
        assert torch.allclose(batch.unbiased_D, plain.unbiased_D)
        assert (batch.estimates["rloo"][0] - plain.unbiased_D).norm() > 0.1 * plain.unbiased_D.norm()
