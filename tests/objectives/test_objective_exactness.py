"""Expected gradients of objectives by complete enumeration, on-policy and after the policy has moved."""

import itertools
import math
from collections import Counter

import pytest
import torch
from builders import record
from enumeration import PREFIXES, RESPONSES, random_logits, relative_error, token_logprobs

from tpg.aggregation import MinibatchSize, SequenceSum
from tpg.objectives.cispo import CISPO
from tpg.objectives.gspo import GSPO, LUSPO
from tpg.objectives.p3o import P3O
from tpg.objectives.policy_gradient import PolicyGradient
from tpg.objectives.ppo_clip import PPOClip
from tpg.objectives.sapo import SAPO
from tpg.objectives.sequence_clip import SequenceClip
from tpg.objectives.vespo import VESPO

REWARDS_R = torch.sin(1.7 * torch.arange(len(RESPONSES), dtype=torch.float64))
POLICY, BEFORE = random_logits(1), random_logits(1) + 0.2 * random_logits(2)
WIDE = {"clip_low": 1.0, "clip_high": 1e9}
EXACT = 1e-10


def centred(rewards_B):
    return rewards_B - rewards_B.mean()


def leave_one_out(rewards_B):
    return centred(rewards_B) * len(rewards_B) / (len(rewards_B) - 1)


def true_gradient():
    logits_SV = POLICY.clone().requires_grad_()
    value = (token_logprobs(logits_SV).sum(-1).exp() * REWARDS_R).sum()
    return torch.autograd.grad(value, logits_SV)[0]


def expected_gradient(objective, weigh, group, before=BEFORE, baseline_RT=None):
    """The mean ascent of POLICY over all groups of responses drawn from `before`."""
    logits_SV = POLICY.clone().requires_grad_()
    logprobs_RT, old_RT = token_logprobs(logits_SV), token_logprobs(before)
    probability_R = old_RT.sum(-1).exp()
    total = torch.zeros((), dtype=torch.float64)
    for drawn in map(list, itertools.combinations_with_replacement(range(len(RESPONSES)), group)):
        orders = math.factorial(group) / math.prod(math.factorial(n) for n in Counter(drawn).values())
        trajectories = record([[1]] * group, [list(RESPONSES[r]) for r in drawn])
        width = trajectories.response_ids_BT.shape[1]
        weights_BT = weigh(REWARDS_R[drawn])[:, None].expand(group, width)
        if baseline_RT is not None:
            weights_BT = weights_BT - baseline_RT[drawn, :width]
        trajectories = trajectories.replace(
            row_B=torch.zeros(group, dtype=torch.long), weights_BT=weights_BT, old_logprobs_BT=old_RT[drawn, :width]
        )
        losses_BT = objective(logprobs_RT[drawn, :width], trajectories).losses_BT
        size = MinibatchSize(group, int(trajectories.action_mask_BT.sum()), 3)
        total = total - orders * probability_R[drawn].prod() * SequenceSum()(
            losses_BT, trajectories.action_mask_BT, size
        )
    return torch.autograd.grad(total, logits_SV)[0]


def raw(rewards_B):
    return rewards_B


ON_POLICY = [
    PPOClip(),
    SequenceClip(),
    LUSPO(),
    CISPO(),
    SAPO(),
    VESPO(),
]


@pytest.mark.parametrize("objective", ON_POLICY, ids=repr)
def test_on_policy_they_are_exact(objective):
    gradient = expected_gradient(objective, leave_one_out, 2, before=POLICY)
    assert relative_error(gradient, true_gradient()) < EXACT


def test_the_division_by_length_biases_gspo_on_policy():
    gradient = expected_gradient(GSPO(), raw, 1, before=POLICY)
    assert relative_error(gradient, true_gradient()) > 0.05


@pytest.mark.parametrize("clipping", ["joint", "separate", "none"])
@pytest.mark.parametrize(("weigh", "scale"), [(raw, 1.0), (centred, 1.0), (leave_one_out, 2.0)])
def test_p3o_on_policy_is_exact_with_the_rewards_differences(clipping, weigh, scale):
    gradient = expected_gradient(P3O(clipping=clipping), weigh, 2, before=POLICY)
    assert relative_error(gradient, scale * true_gradient()) < EXACT


def test_p3o_of_three_is_exact():
    """`leave_one_out` weights of three differ 3/2 times as much as the rewards."""
    assert relative_error(expected_gradient(P3O(), centred, 3, before=POLICY), true_gradient()) < EXACT
    assert relative_error(expected_gradient(P3O(), leave_one_out, 3, before=POLICY), 1.5 * true_gradient()) < EXACT


@pytest.mark.parametrize(
    ("objective", "weigh", "group"),
    [
        (SequenceClip(**WIDE), raw, 1),
        (SequenceClip(**WIDE), leave_one_out, 2),
        (P3O(clipping="none"), centred, 2),
        (P3O(clipping="separate", **WIDE), centred, 2),
        (P3O(clipping="joint", **WIDE), centred, 2),
    ],
    ids=lambda value: getattr(value, "__name__", repr(value)),
)
def test_whole_response_ratios_are_exact_after_the_policy_has_moved(objective, weigh, group):
    assert relative_error(expected_gradient(objective, weigh, group), true_gradient()) < EXACT


def test_whole_response_ratios_are_exact_for_weights_that_differ_from_token_to_token():
    """A baseline for each prefix leaves the expected gradient alone."""
    baselines = {prefix: 0.3 * i - 1 for i, prefix in enumerate(PREFIXES)}
    rows = [
        [baselines.get(response[:t], 0.0) if t < len(response) else 0.0 for t in range(3)] for response in RESPONSES
    ]
    baseline_RT = torch.tensor(rows, dtype=torch.float64)
    unclipped = SequenceClip(**WIDE)
    assert relative_error(expected_gradient(unclipped, raw, 1, baseline_RT=baseline_RT), true_gradient()) < EXACT
    tokenwise = expected_gradient(PPOClip(**WIDE), raw, 1, baseline_RT=baseline_RT)
    assert relative_error(tokenwise, true_gradient()) > 0.01


@pytest.mark.parametrize(
    "objective",
    [
        PolicyGradient(),
        PPOClip(**WIDE),
        PPOClip(),
        SequenceClip(),
        LUSPO(**WIDE),
        CISPO(),
        SAPO(),
        VESPO(),
    ],
    ids=repr,
)
def test_others_are_biased_once_the_policy_has_moved(objective):
    assert relative_error(expected_gradient(objective, raw, 1), true_gradient()) > 0.01


@pytest.mark.parametrize("clipping", ["joint", "separate"])
def test_clipped_pairs_are_biased_once_the_policy_has_moved(clipping):
    assert relative_error(expected_gradient(P3O(clipping=clipping), centred, 2), true_gradient()) > 0.01
