"""How an iteration is split in memory changes no number, and what carries no signal changes no weight."""

import math
from dataclasses import replace

import pytest
import torch
from iterations import ENGINE, gradients, token_reward, trained, weights
from torch.testing import assert_close

from tpg.aggregation import Constant, SequenceMean, SequenceSum, TokenMean
from tpg.estimators.group import GRPO
from tpg.estimators.reinforce import ReinforceEMA
from tpg.kl import KLInLoss, KLInReward
from tpg.mismatch import Truncated
from tpg.objectives.ppo_clip import PPOClip
from tpg.policies.base import Policy
from tpg.training.options import Optimizer, Update

SAME = {"atol": 1e-10, "rtol": 1e-8}
CLIP = 0.01


@pytest.fixture(scope="module")
def untouched():
    from builders import tiny_policy

    policy = tiny_policy(hidden_size=16, layers=2).double()
    return torch.cat([parameter.detach().flatten() for parameter in policy.parameters()])


@pytest.mark.parametrize("minibatch", [None, 5])
@pytest.mark.parametrize("aggregation", [SequenceSum(), Constant(), TokenMean(), SequenceMean()])
def test_micro_batches_change_no_number(tmp_path, aggregation, minibatch):
    def run(size):
        update = Update(responses_per_microbatch=size, responses_per_minibatch=minibatch)
        return trained(tmp_path, aggregation=aggregation, update=update, objective=PPOClip(), clip=CLIP)

    whole, thirds, singles = run(16), run(3), run(1)
    lengths = whole.experience.trajectories.lengths_B
    assert len(set(lengths.tolist())) > 2
    assert len(gradients(whole)) == (1 if minibatch is None else 4)
    assert whole.metrics["grad_norm"] > CLIP
    assert max(thirds.recorder.micro_batches) <= 3
    assert max(singles.recorder.micro_batches) == 1
    for other in (thirds, singles):
        for expected, given in zip(gradients(whole), gradients(other), strict=True):
            assert_close(given, expected, **SAME)
        assert_close(weights(other), weights(whole), **SAME)
        for name in ("loss", "grad_norm", "learning_rate", "ratio", "clip_ratio/region_mean", "completions/updated"):
            assert other.metrics[name] == pytest.approx(whole.metrics[name], rel=1e-5, abs=1e-8), name


def test_micro_batches_change_no_more_than_rounding_does_in_float32(tmp_path):
    options = {"dtype": torch.float32, "clip": CLIP, "aggregation": TokenMean()}
    whole = trained(tmp_path, **options)
    assert weights(whole).dtype == torch.float32
    for size in (1, 3):
        other = trained(tmp_path, update=Update(responses_per_microbatch=size), **options)
        assert_close(gradients(other)[0], gradients(whole)[0], atol=1e-6, rtol=1e-5)
        assert_close(weights(other), weights(whole), atol=1e-6, rtol=0.0)


def test_clipping_scales_the_whole_step(tmp_path):
    free, clipped = trained(tmp_path), trained(tmp_path, clip=CLIP)
    plain = Optimizer(lr=0.1, eps=0.1)
    expected = gradients(free)[0]
    assert_close(gradients(clipped)[0], expected, **SAME)
    scaled = expected * CLIP / (expected.norm() + 1e-6)  # torch's clip_grad_norm_ has this
    start = weights(trained(tmp_path, reward=lambda sample: 1.0))
    step = plain.lr * scaled / (scaled.abs() + plain.eps)
    assert_close(weights(clipped), start - step, **SAME)


def test_the_gradient_is_the_weighted_score_function(tmp_path):
    module = trained(tmp_path, update=Update(responses_per_microbatch=3))
    trajectories = module.experience.trajectories
    fresh = trained(tmp_path, reward=lambda sample: 1.0)
    logprobs_BT = fresh.policy.statistics(trajectories, 1.0).logprobs
    surrogate = -(trajectories.weights_BT * logprobs_BT)[trajectories.action_mask_BT].sum() / len(trajectories)
    expected = torch.autograd.grad(surrogate, list(fresh.parameters()))
    assert_close(gradients(module)[0], torch.cat([grad.flatten() for grad in expected]), **SAME)


def mostly_equal(sample):
    """Rewards that differ within the groups of the even rows alone."""
    return token_reward(sample) if int(sample.prompt) % 2 == 0 else 1.0


@pytest.mark.parametrize("aggregation", [SequenceSum(), TokenMean(), SequenceMean()])
@pytest.mark.parametrize("size", [1, 3, 16])
def test_skipping_what_has_no_weight_changes_no_number(tmp_path, aggregation, size):
    options = {
        "reward": mostly_equal,
        "aggregation": aggregation,
        "estimator": GRPO(),
        "update": Update(responses_per_microbatch=size, responses_per_minibatch=4),
        "iterations": 2,
    }
    skipping, full = trained(tmp_path, **options), trained(tmp_path, **options, skip=False)
    assert 0 < skipping.metrics["completions/updated"] < full.metrics["completions/updated"] == 16
    assert len(gradients(skipping)) == len(gradients(full)) == 8
    for expected, given in zip(gradients(full), gradients(skipping), strict=True):
        assert_close(given, expected, **SAME)
    assert_close(weights(skipping), weights(full), **SAME)
    assert skipping.metrics["loss"] == pytest.approx(full.metrics["loss"], abs=1e-6)


@pytest.mark.parametrize("minibatch", [None, 4])
def test_a_batch_without_any_signal_changes_no_weight(tmp_path, untouched, minibatch):
    update = Update(responses_per_minibatch=minibatch)
    module = trained(tmp_path, reward=lambda sample: 0.25, update=update, clip=1.0)
    assert torch.equal(weights(module), untouched)
    assert module.metrics["frac_reward_zero_std"] == 1.0
    assert module.metrics["reward_std"] == 0.0
    assert module.metrics["completions/updated"] == 0.0
    assert module.metrics["loss"] == module.metrics["grad_norm"] == 0.0
    assert len(gradients(module)) == (1 if minibatch is None else 4)


def test_a_batch_of_which_nothing_is_scored_changes_no_weight(tmp_path, untouched):
    module = trained(tmp_path, reward=lambda sample: math.nan, clip=1.0, estimator=ReinforceEMA())
    assert torch.equal(weights(module), untouched)
    assert module.metrics["completions/unscored"] == 16.0
    assert math.isnan(module.metrics["reward"])
    assert module.method_state["estimator"] == {"sum": 0.0, "weight": 0.0}


@pytest.mark.parametrize("estimator", [ReinforceEMA(), GRPO()])
def test_an_unscored_response_is_out_of_the_loss(tmp_path, estimator):
    def failing(sample):
        return math.nan if int(sample.prompt) % 2 else token_reward(sample)

    module = trained(tmp_path, reward=failing, estimator=estimator, update=Update(responses_per_microbatch=3))
    trajectories = module.experience.trajectories
    odd_B = trajectories.row_B % 2 == 1
    assert 0 < int(odd_B.sum()) < 16
    assert module.metrics["completions/unscored"] == float(odd_B.sum())
    assert not trajectories.weights_BT[odd_B].any()
    fresh = trained(tmp_path, reward=lambda sample: math.nan, estimator=estimator)
    part = trajectories.select(~odd_B)
    surrogate = -(part.weights_BT * fresh.policy.statistics(part, 1.0).logprobs)[part.action_mask_BT].sum()
    expected = torch.autograd.grad(surrogate / len(part), list(fresh.parameters()))
    assert_close(gradients(module)[0], torch.cat([grad.flatten() for grad in expected]), **SAME)


def test_a_group_with_one_scored_response_is_dropped(tmp_path):
    seen = []

    def one_of_each_group(sample):
        seen.append(sample)
        return 1.0 if len(seen) % 4 == 1 else math.nan

    module = trained(tmp_path, reward=one_of_each_group)
    assert module.metrics["completions/unscored"] == 12.0
    assert module.metrics["completions/dropped"] == 4.0
    assert module.metrics["grad_norm"] == 0.0


@pytest.mark.parametrize("form", ["k2", "k3"])
def test_kl_in_the_loss_has_no_gradient_where_policy_and_reference_are_one(tmp_path, form):
    without = trained(tmp_path)
    module = trained(tmp_path, kl=KLInLoss(coefficient=10.0, form=form))
    assert module.metrics["kl"] == pytest.approx(0.0, abs=1e-6)
    assert_close(gradients(module)[0], gradients(without)[0], **SAME)
    assert "kl" not in without.metrics


@pytest.mark.parametrize("kl", [KLInLoss(coefficient=1.0), KLInReward(coefficient=1.0)])
def test_kl_pulls_the_policy_back_once_it_has_moved(tmp_path, kl):
    without = trained(tmp_path, iterations=2)
    module = trained(tmp_path, kl=kl, iterations=2)
    assert module.metrics["kl"] != pytest.approx(0.0, abs=1e-3)
    assert not torch.allclose(gradients(module)[1], gradients(without)[1], atol=1e-4)


def test_kl_in_the_loss_counts_for_responses_without_a_weight(tmp_path):
    module = trained(tmp_path, kl=KLInLoss(), reward=lambda sample: 1.0)
    assert module.metrics["completions/updated"] == 16.0


def test_old_log_probabilities_are_the_rollouts_before_the_first_step(tmp_path):
    module = trained(tmp_path, update=Update(epochs=2), objective=PPOClip())
    assert module.metrics["sampling/sampling_logp_difference/mean"] < 1e-5
    assert module.metrics["ratio"] != pytest.approx(1.0, abs=1e-6)
    single = trained(tmp_path, objective=PPOClip())
    assert single.metrics["ratio"] == pytest.approx(1.0, abs=1e-6)
    assert single.experience.trajectories.old_logprobs_BT is None


@pytest.mark.parametrize(("update", "before"), [(Update(), 0), (Update(epochs=2), 16)])
def test_a_correction_takes_no_pass_before_the_only_update(tmp_path, update, before, monkeypatch):
    calls = []
    statistics = Policy.statistics

    def counting(policy, trajectories, *arguments, **options):
        calls.append(len(trajectories))
        return statistics(policy, trajectories, *arguments, **options)

    monkeypatch.setattr(Policy, "statistics", counting)
    module = trained(tmp_path, update=update, objective=PPOClip(), mismatch=Truncated())
    assert sum(calls) == before + sum(module.recorder.micro_batches)
    assert module.metrics["mismatch/ess"] == pytest.approx(1.0)
    assert module.metrics["sampling/sampling_logp_difference/max"] < 1e-5


def test_a_group_engine_of_one_response_works_without_a_group(tmp_path):
    module = trained(tmp_path, engine=replace(ENGINE, responses_per_prompt=1), estimator=ReinforceEMA())
    assert module.metrics["grad_norm"] > 0
    assert module.metrics["reward_std"] == 0.0
