"""Methods with one mistake each, of which nothing is declared: every one is found, and most are named."""

import pytest
import torch
from tables import blamed, judge, setting

from tpg.aggregation import Aggregation, SequenceSum
from tpg.audit.causes import causes
from tpg.audit.rows import Names, audit
from tpg.audit.tabular import Tree, Worlds
from tpg.component import component
from tpg.estimators.base import Estimator
from tpg.estimators.boundaries import Boundaries
from tpg.estimators.group import GRPO
from tpg.estimators.prefix_values import PrefixValueEstimator
from tpg.estimators.reinforce import Reinforce
from tpg.estimators.rloo import RLOO
from tpg.estimators.segment import Segment
from tpg.numerics import group_sum
from tpg.rollouts.sampling import Sampling
from tpg.training.options import Audit

ENDING = Worlds(tree=Tree(vocabulary=3, horizon=2, end=True))
FIXED = Worlds(tree=Tree(vocabulary=3, horizon=2, end=False))
TWO_PROMPTS = Worlds(tree=Tree(vocabulary=2, horizon=2, end=True), prompts=2, reward_scales=(1.0, 5.0))


@component
class Planted(Estimator):
    """Leave-one-out advantages, spoilt."""

    min_group = 2

    def weights(self, trajectories, answers):
        advantages_B1 = RLOO().weights(trajectories, answers)[:, :1]
        return self.spoilt(advantages_B1, trajectories) * trajectories.action_mask_BT


def lengths(trajectories):
    return trajectories.action_mask_BT.sum(-1, keepdim=True)


@component
class DividesByStd(Planted):
    def spoilt(self, advantages_B1, trajectories):
        deviation_B = (advantages_B1[:, 0].square() * 0.25).clamp(min=1e-12)
        return advantages_B1 / (group_sum(deviation_B, trajectories.group_B).sqrt()[:, None] + 1e-4)


@component
class DividesByLength(Planted):
    def spoilt(self, advantages_B1, trajectories):
        return advantages_B1 / lengths(trajectories)


@component
class Discounts(Planted):
    def spoilt(self, advantages_B1, trajectories):
        steps_T = torch.arange(trajectories.action_mask_BT.shape[1])
        return advantages_B1 * 0.8 ** (lengths(trajectories) - 1 - steps_T)


@component
class CountsItselfIn(Planted):
    def spoilt(self, advantages_B1, trajectories):
        return advantages_B1 / 2


@component
class CountsItselfInByLength(Planted):
    def spoilt(self, advantages_B1, trajectories):
        # As `R_i - sum_j L_j R_j / sum_j L_j`: of two responses the other one's share of the difference.
        share = 1 - lengths(trajectories)[:, 0] / group_sum(lengths(trajectories)[:, 0].double(), trajectories.group_B)
        return advantages_B1 * share[:, None]


@component
class NothingBelowZero(Planted):
    def spoilt(self, advantages_B1, trajectories):
        return advantages_B1.clamp(min=0)


@component
class Clips(Planted):
    def spoilt(self, advantages_B1, trajectories):
        return advantages_B1.clamp(-0.5, 0.5)


@component
class PeeksAtItsTokens(Planted):
    def spoilt(self, advantages_B1, trajectories):
        return advantages_B1 - 0.5 * (trajectories.response_ids_BT[:, :1] == 1)


@component
class PeeksAtItsTokensInProportion(Planted):
    def spoilt(self, advantages_B1, trajectories):
        assert trajectories.rewards_B is not None
        others_B1 = trajectories.rewards_B[:, None] - advantages_B1
        return advantages_B1 - others_B1 * (trajectories.response_ids_BT[:, :1] == 1)


@component
class WrongSign(Planted):
    def spoilt(self, advantages_B1, trajectories):
        return -advantages_B1


@component
class DropsTheLast(Planted):
    def spoilt(self, advantages_B1, trajectories):
        return advantages_B1 * (trajectories.response_index_B > 0)[:, None]


@component
class OnlyTheFirstToken(Planted):
    def spoilt(self, advantages_B1, trajectories):
        return advantages_B1 * (torch.arange(trajectories.action_mask_BT.shape[1]) == 0)


@component
class PushesWhereAllAreEqual(Planted):
    def spoilt(self, advantages_B1, trajectories):
        return torch.where(advantages_B1 == 0, 0.5 * trajectories.entropy_BT, advantages_B1)


DIRECTION = [
    (DividesByStd(), ENDING, ["std normalisation"]),
    (DividesByLength(), ENDING, ["length normalisation"]),
    (Discounts(), ENDING, ["discounting"]),
    (CountsItselfInByLength(), ENDING, ["self-inclusion"]),
    (NothingBelowZero(), ENDING, ["clipped weights"]),
    (Clips(), ENDING, ["clipped weights"]),
    (PeeksAtItsTokens(), ENDING, ["a push that ignores the rewards"]),
    (PeeksAtItsTokensInProportion(), ENDING, ["a baseline that reads its own response"]),
    (WrongSign(), ENDING, ["wrong sign"]),
    (PushesWhereAllAreEqual(), ENDING, ["push in zero-variance groups"]),
    (OnlyTheFirstToken(), ENDING, ["something in OnlyTheFirstToken"]),
]


@pytest.mark.parametrize(("estimator", "worlds", "names"), DIRECTION, ids=lambda value: type(value).__name__)
def test_a_wrong_direction_is_found_and_named(estimator, worlds, names):
    tried = setting(estimator, 2, worlds=worlds)
    whole = judge(tried)
    assert not whole.exact
    assert not whole.exact_direction
    assert whole.verdict.startswith("biased")
    found = causes(tried, whole, judge)
    assert found[0].name == names[0]
    assert found[-1].cosine > 1 - 1e-6


@pytest.mark.parametrize(
    ("estimator", "scale", "names"),
    [(CountsItselfIn(), 0.5, ["self-inclusion"]), (DropsTheLast(), 0.5, ["something in DropsTheLast"])],
    ids=lambda value: type(value).__name__,
)
def test_a_wrong_scale_is_found_and_named(estimator, scale, names):
    tried = setting(estimator, 2, worlds=ENDING)
    whole = judge(tried)
    assert not whole.exact
    assert whole.exact_direction
    assert whole.scale == pytest.approx(scale)
    assert whole.verdict == f"exact direction, scale {scale:.3f}"
    assert blamed(tried) == names


def test_weights_past_the_end_change_nothing():
    @component
    class SpillsOver(Reinforce):
        def weights(self, trajectories, answers):
            return super().weights(trajectories, answers) + 3.0 * ~trajectories.action_mask_BT

    assert judge(setting(SpillsOver(), worlds=ENDING)).exact


def test_another_prompts_rewards_are_no_less_independent():
    @component
    class OthersPrompt(Estimator):
        """The mean reward of the batch's other prompts: unbiased, if noisy."""

        def weights(self, trajectories, answers):
            rewards_B = trajectories.rewards_B
            batch_B, size = trajectories.draw_B, len(trajectories.row_B.unique())
            others_B = (group_sum(rewards_B, batch_B) - group_sum(rewards_B, trajectories.group_B)) / (size - 1)
            return (rewards_B - others_B)[:, None] * trajectories.action_mask_BT

    coupled = judge(setting(OthersPrompt(), 1, worlds=TWO_PROMPTS))
    assert coupled.exact
    assert coupled.enumerated
    assert coupled.trace_covariance > judge(setting(RLOO(), 2, worlds=TWO_PROMPTS)).trace_covariance


# Values of prefixes.


@component
class OwnRewardInItsValues(Segment):
    """The main response counted among the continuations of its own prefixes."""

    def weights(self, trajectories, answers):
        values_K = answers.continued_values_K
        parent_K = self.requests(trajectories).continuations.parent_K
        mixed_K = (self.continuations * values_K + trajectories.rewards_B[parent_K]) / (self.continuations + 1)
        return super().weights(trajectories, type(answers)(continued_values_K=mixed_K))


@component
class HalfWay(Boundaries):
    """A boundary in the middle of the realised length."""

    def at(self, trajectories):
        half_B1 = (trajectories.action_mask_BT.sum(-1, keepdim=True) + 1) // 2
        columns_T = torch.arange(trajectories.action_mask_BT.shape[1])
        return trajectories.action_mask_BT & (columns_T == half_B1) & (columns_T > 0)


def test_own_reward_in_its_own_values_shrinks_by_n_over_n_plus_1():
    from tpg.estimators.boundaries import EveryTokens

    for n in (1, 3):
        spoilt = OwnRewardInItsValues(continuations=n, boundaries=EveryTokens(tokens=1))
        whole = judge(setting(spoilt, worlds=ENDING))
        assert whole.enumerated
        assert whole.exact_direction
        assert whole.scale == pytest.approx(n / (n + 1))
        assert blamed(setting(spoilt, worlds=ENDING)) == ["something in OwnRewardInItsValues"]


def test_boundaries_at_a_fraction_of_the_realised_length():
    worlds = Worlds(tree=Tree(vocabulary=2, horizon=4, end=True))
    tried = setting(Segment(continuations=2, boundaries=HalfWay()), worlds=worlds)
    whole = judge(tried)
    assert whole.relative_bias > 0.01
    assert not whole.exact_direction
    assert blamed(tried)[-1] == "something in Segment"


def test_values_that_the_weights_are_not_linear_in_are_drawn():
    @component
    class OnlyGains(Segment):
        def weights(self, trajectories, answers):
            return super().weights(trajectories, answers).clamp(min=0)

    from tpg.estimators.boundaries import EveryTokens

    boundaries = EveryTokens(tokens=1)
    whole = judge(setting(OnlyGains(continuations=1, boundaries=boundaries), worlds=ENDING), range(2))
    assert not whole.enumerated
    assert not whole.exact
    assert issubclass(OnlyGains, PrefixValueEstimator)


def test_a_sign_is_not_mistaken_where_batches_are_drawn():
    tried = setting(WrongSign(), 2, worlds=ENDING)
    sampled = judge(tried, limit=1, samples=3000)
    assert not sampled.enumerated
    assert not sampled.exact_direction
    assert sampled.verdict.startswith("biased: cos -")


# What is said in the end.


def verdict(estimator, sampling=None, **options):
    names = Names("policy_gradient", "sequence_sum", "none", "none")
    (row,) = audit({"it": estimator}, setting(estimator).method, sampling or Sampling(), names, Audit(**options))
    return row.judgement.verdict


def test_the_verdict_names_what_was_found_and_says_where_nothing_was():
    small = {"worlds": 4, "horizon": 2, "end": True}
    assert verdict(RLOO(), **small) == "exact"
    assert verdict(WrongSign(), **small) == "biased: cos -1.000, because of wrong sign"
    assert verdict(GRPO(), **small).endswith("because of std normalisation and self-inclusion")
    spoilt = verdict(PeeksAtItsTokens(), **small)
    assert spoilt.startswith("biased: cos 0.")
    assert spoilt.endswith("because of a push that ignores the rewards")


def test_the_verdict_says_where_no_cause_is_found():
    @component
    class Stubborn(RLOO):
        def without(self):
            return {"nothing": self}

    from tpg.audit.verdict import judged

    whole = judge(setting(CountsItselfIn(), 2, worlds=ENDING))
    assert whole.because([], explained=False).verdict == "exact direction, scale 0.500; no cause found"
    partly = whole.because(["a", "b"], explained=False)
    assert partly.verdict == "exact direction, scale 0.500, because of a and b, and of more that was not found"
    assert judged([setting(Stubborn(), 2, worlds=ENDING).moments(0, 50_000, 200)]).exact
    assert isinstance(SequenceSum(), Aggregation)
