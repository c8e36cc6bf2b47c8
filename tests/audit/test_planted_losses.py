"""Mistakes in other parts than the estimator: each is found, and the part is named."""

import pytest
from tables import blamed, judge, setting

from tpg.aggregation import Aggregation
from tpg.audit.causes import causes
from tpg.audit.tabular import Tree, Worlds
from tpg.component import component
from tpg.estimators.rloo import RLOO
from tpg.mismatch import Mismatch
from tpg.objectives.base import Objective, TokenLosses, weights

ENDING = Worlds(tree=Tree(vocabulary=3, horizon=2, end=True))


@component
class NoGradient(Objective):
    off_policy = True

    def __call__(self, logprobs_BT, trajectories):
        ratio_BT = (logprobs_BT - trajectories.old_logprobs_BT).exp().detach()
        return TokenLosses(-ratio_BT * weights(trajectories) + 0.0 * logprobs_BT)


@component
class Uphill(Objective):
    off_policy = False

    def __call__(self, logprobs_BT, trajectories):
        return TokenLosses(weights(trajectories) * logprobs_BT)


@component
class OneTokenMore(Aggregation):
    def divisors(self, mask_BT, size):
        return max(1, size.responses) * (mask_BT.sum(-1, keepdim=True) + 1)


@component
class HalfTheResponses(Mismatch):
    corrects = True

    def factors(self, trajectories):
        return (trajectories.rewards_B > 0).double()[:, None].expand_as(trajectories.action_mask_BT)


def test_a_loss_without_a_gradient():
    tried = setting(RLOO(), 2, worlds=ENDING, objective=NoGradient())
    whole = judge(tried)
    assert (whole.scale, whole.trace_covariance, whole.exact) == (0.0, 0.0, False)
    assert whole.verdict == "no gradient at all"
    assert blamed(tried) == ["something in NoGradient"]


@pytest.mark.parametrize(
    "parts",
    [{"objective": Uphill()}, {"aggregation": OneTokenMore()}, {"mismatch": HalfTheResponses()}],
    ids=["objective", "aggregation", "mismatch"],
)
def test_a_mistake_in_another_part_is_found_there(parts):
    tried = setting(RLOO(), 2, worlds=ENDING, **parts)
    whole = judge(tried)
    assert whole.verdict.startswith("biased")
    assert (whole.cosine == pytest.approx(-1.0)) is ("objective" in parts)
    found = causes(tried, whole, judge)
    assert found[-1].exact
    (part,) = parts.values()
    wanted = f"something in {type(part).__name__}"
    assert [cause.name for cause in found] == [wanted]


def test_no_gradient_is_not_taken_for_a_small_one_where_batches_are_drawn():
    nothing = judge(setting(RLOO(), 2, worlds=ENDING, objective=NoGradient()), limit=1, samples=200)
    assert not nothing.exact
    assert not nothing.exact_direction
