"""What is known about the methods that there are: exactness, scales, directions, and who is to blame."""

import pytest
from tables import blamed, judge, setting

from tpg.aggregation import Constant, SequenceMean, TokenMean
from tpg.audit.oracles import TokenRewardToGo
from tpg.audit.tabular import Tree, Worlds
from tpg.estimators.boundaries import EveryTokens
from tpg.estimators.gae import GAE
from tpg.estimators.group import GRPO, GroupMean
from tpg.estimators.obl import OBL
from tpg.estimators.opo import OPO
from tpg.estimators.otb import OTB
from tpg.estimators.reinforce import Reinforce
from tpg.estimators.reinforce_pp import ReinforcePP, ReinforcePPBaseline
from tpg.estimators.remax import ReMax
from tpg.estimators.rl_zvp import RLZVP
from tpg.estimators.rloo import RLOO
from tpg.estimators.segment import Segment
from tpg.estimators.trepo import TRePOInterpolate, TRePOInverseProbability
from tpg.kl import KLInLoss, KLInReward, KLToGo, SequenceKLInLoss
from tpg.mismatch import Masked, Truncated
from tpg.objectives.policy_gradient import PolicyGradient
from tpg.objectives.ppo_clip import PPOClip
from tpg.objectives.sequence_clip import SequenceClip
from tpg.rollouts.sampling import Sampling

ENDING = Worlds(tree=Tree(vocabulary=3, horizon=2, end=True), critic_error=0.7)
WIDE = {"clip_low": 0.999, "clip_high": 1e6}

EXACT = [
    (Reinforce(baseline=0.4), 1),
    (ReMax(), 1),
    (RLOO(), 2),
    (OPO(leave_one_out=True), 2),
    (OBL(leave_one_out=True), 2),
    (OTB(leave_one_out=True), 2),
    (GAE(lam=1.0), 1),
    (TokenRewardToGo(), 1),
    (Segment(continuations=2, boundaries=EveryTokens(tokens=1)), 1),
    (TRePOInverseProbability(continuations=1, positions=1), 1),
]


@pytest.mark.parametrize(("estimator", "group"), EXACT, ids=repr)
def test_exact_in_every_world(estimator, group):
    whole = judge(setting(estimator, group, worlds=ENDING), range(4))
    assert whole.relative_bias < 1e-12
    assert (whole.scale, whole.cosine) == (pytest.approx(1.0), pytest.approx(1.0))
    assert (whole.verdict, whole.exact, whole.margin) == ("exact", True, 0.0)


@pytest.mark.parametrize("group", [2, 3])
def test_the_groups_own_mean_shrinks_the_gradient(group):
    whole = judge(setting(GroupMean(), group, worlds=ENDING))
    assert whole.scale == pytest.approx((group - 1) / group, abs=1e-12)
    assert whole.relative_bias == pytest.approx(1 / group, abs=1e-12)
    assert whole.verdict == f"exact direction, scale {(group - 1) / group:.3f}"
    assert blamed(setting(GroupMean(), group, worlds=ENDING)) == ["self-inclusion"]


def test_grpo_in_the_worlds_of_the_paper():
    whole = judge(setting(GRPO(), 2), range(20))
    assert 0.6 < whole.relative_bias < 0.8
    assert 0.2 < whole.scale < 0.4
    assert 0.95 < whole.cosine < 0.99


# Counted with `Count` of tables.py, which shares nothing with the audit.
PINNED = {
    "reinforce": 3.587797384733478,
    "to go": 2.8281930519134373,
    "R - V": 2.5719891921986258,
    "Q - V": 0.9533713717079071,
    "rloo": 2.817615635377603,
}


def test_variances_on_fixed_worlds():
    traces = {
        name: judge(setting(estimator, group), range(3)).trace_covariance
        for name, estimator, group in [
            ("reinforce", Reinforce(), 1),
            ("to go", TokenRewardToGo(), 1),
            ("R - V", GAE(lam=1.0), 1),
            ("Q - V", GAE(lam=0.0), 1),
            ("rloo", RLOO(), 2),
        ]
    }
    assert traces == pytest.approx(PINNED, rel=1e-10)
    assert traces["Q - V"] < traces["R - V"] < traces["to go"] < traces["reinforce"]


BLAMED = [
    (GRPO(), {}, {"std normalisation", "self-inclusion"}),
    (RLZVP(alpha=0.5), {}, {"push in zero-variance groups", "std normalisation", "self-inclusion"}),
    (ReinforcePP(), {}, {"batch std normalisation", "self-inclusion"}),
    (ReinforcePPBaseline(), {}, {"batch std normalisation", "self-inclusion"}),
    (OPO(), {}, {"self-inclusion"}),
    (OBL(), {}, {"self-inclusion"}),
    (OTB(), {}, {"self-inclusion"}),
    (TRePOInterpolate(positions=1), {}, {"interpolation"}),
    (RLOO(), {"aggregation": SequenceMean()}, {"length normalisation"}),
    (RLOO(), {"aggregation": TokenMean()}, {"length normalisation"}),
    (RLOO(), {"aggregation": Constant()}, {"division by the length limit"}),
    (RLOO(), {"kl": KLInLoss(coefficient=0.5, form="k3")}, {"KL placement"}),
    (RLOO(), {"kl": KLInLoss(coefficient=0.5, form="k2")}, {"KL placement"}),
    (RLOO(), {"kl": KLInLoss(coefficient=0.5, form="ratio_k3")}, {"KL placement"}),
    (RLOO(), {"entropy_coefficient": 0.2}, {"entropy bonus"}),
]


@pytest.mark.parametrize(
    ("estimator", "parts", "names"),
    BLAMED,
    ids=lambda value: str(sorted(value)) if isinstance(value, set) else repr(value),
)
def test_who_is_to_blame(estimator, parts, names):
    tried = setting(estimator, max(2, estimator.min_group), worlds=ENDING, **parts)
    whole = judge(tried)
    assert not whole.exact
    assert set(blamed(tried)) == names


@pytest.mark.parametrize("kl", [KLInReward, KLToGo, SequenceKLInLoss])
@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_penalties_that_are_exact(kl, temperature):
    assert judge(setting(RLOO(), 2, Sampling(temperature=temperature), ENDING, kl=kl(coefficient=0.5))).exact


def test_sampling():
    assert judge(setting(RLOO(), 2, Sampling(temperature=0.6), ENDING)).exact
    truncated = setting(RLOO(), 2, Sampling(top_p=0.6), ENDING)
    assert judge(truncated).relative_bias > 0.05
    assert blamed(truncated) == ["truncated sampling (top-k, top-p, min-p)"]


def test_a_critic_is_only_as_good_as_it_is_exact():
    exact = Worlds(tree=ENDING.tree)
    for kl in ({}, {"kl": KLInReward(coefficient=0.5)}):
        for temperature in (1.0, 0.6):
            sampling = Sampling(temperature=temperature)
            assert judge(setting(GAE(lam=0.0), 1, sampling, exact, **kl)).exact
            assert not judge(setting(GAE(lam=0.0), 1, sampling, ENDING, **kl)).exact
    assert blamed(setting(GAE(lam=0.5), worlds=ENDING)) == ["lambda below 1"]
    assert blamed(setting(GAE(gamma=0.9), worlds=ENDING)) == ["discounting"]


# Rollouts of another policy.

OLD = Worlds(tree=ENDING.tree, off_policy=0.3)
OFF = Worlds(tree=ENDING.tree, mismatch=0.3)


def test_an_older_policy():
    sequence = setting(RLOO(), 2, worlds=OLD, objective=SequenceClip(**WIDE))
    assert judge(sequence).exact
    for objective in (PPOClip(**WIDE), PPOClip(), SequenceClip(), PolicyGradient()):
        tried = setting(RLOO(), 2, worlds=OLD, objective=objective)
        whole = judge(tried)
        assert whole.relative_bias > 1e-3
        assert not whole.exact_direction
        assert blamed(tried)
    assert blamed(setting(RLOO(), 2, worlds=OLD)) == ["rollouts of an older policy"]


def test_an_engine_that_is_off():
    assert judge(setting(RLOO(), 2, worlds=OFF, mismatch=Truncated(level="sequence", cap=1e9))).exact
    assert judge(setting(RLOO(), 2, worlds=OFF, mismatch=Masked(level="sequence", low=0.0, high=1e9))).exact
    for mismatch, names in [
        (Truncated(level="sequence", cap=1.1), {"truncated importance weights"}),
        (Masked(level="sequence", low=0.9, high=1.1), {"masked importance weights"}),
        (Truncated(level="token", cap=1e9), {"token-level importance weights"}),
    ]:
        tried = setting(RLOO(), 2, worlds=OFF, mismatch=mismatch)
        assert not judge(tried).exact
        assert set(blamed(tried)) == names
    assert blamed(setting(RLOO(), 2, worlds=OFF)) == ["mismatch of rollout and trainer"]


def test_values_under_a_clip_are_drawn():
    tried = setting(
        Segment(continuations=1, boundaries=EveryTokens(tokens=1)), worlds=OLD, objective=PPOClip(clip_low=0.1)
    )
    whole = judge(tried, range(1))
    assert not whole.enumerated
    assert whole.margin > 0
