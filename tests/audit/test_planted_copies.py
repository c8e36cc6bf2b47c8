"""Mistakes in copies of estimators that say of themselves what the original says."""

import pytest
from tables import blamed, judge, setting

from tpg.audit.tabular import Tree, Worlds
from tpg.component import component
from tpg.estimators.group import GRPO, GroupMean
from tpg.estimators.rloo import RLOO

ENDING = Worlds(tree=Tree(vocabulary=3, horizon=3, end=True))


@component
class OverLength(GRPO):
    def without(self):
        return {"std normalisation": GroupMean()}

    def weights(self, trajectories, answers):
        return super().weights(trajectories, answers) / trajectories.action_mask_BT.sum(-1, keepdim=True)


@component
class Backwards(GRPO):
    def weights(self, trajectories, answers):
        return -super().weights(trajectories, answers)


@component
class OnlyPositive(GRPO):
    def weights(self, trajectories, answers):
        return super().weights(trajectories, answers).clamp(min=0)


@component
class LaterTokensHalved(GroupMean):
    def without(self):
        return {"self-inclusion": RLOO()}

    def weights(self, trajectories, answers):
        weights_BT = super().weights(trajectories, answers).clone()
        weights_BT[:, 1:] *= 0.5
        return weights_BT


@pytest.mark.parametrize(
    ("estimator", "names"),
    [
        (GRPO(), ["std normalisation", "self-inclusion"]),
        (OverLength(), ["std normalisation", "length normalisation", "self-inclusion"]),
        (Backwards(), ["wrong sign", "std normalisation", "self-inclusion"]),
    ],
    ids=repr,
)
def test_what_a_copy_adds_is_named_beside_what_it_declares(estimator, names):
    assert blamed(setting(estimator, 2, worlds=ENDING)) == names


@pytest.mark.parametrize(
    ("estimator", "name"), [(OnlyPositive(), "clipped weights"), (LaterTokensHalved(), "discounting")], ids=repr
)
def test_what_a_copy_adds_is_named_first(estimator, name):
    tried = setting(estimator, 2, worlds=ENDING)
    assert not judge(tried).exact_direction
    assert blamed(tried)[0] == name
