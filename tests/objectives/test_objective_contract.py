"""What every objective must keep. A new one adds a line to `OBJECTIVES`."""

from dataclasses import dataclass

import pytest
import torch
from builders import record, widened

from tpg.objectives.base import Objective
from tpg.objectives.cispo import CISPO
from tpg.objectives.gspo import GSPO, LUSPO
from tpg.objectives.p3o import P3O
from tpg.objectives.policy_gradient import PolicyGradient
from tpg.objectives.ppo_clip import PPOClip
from tpg.objectives.sapo import SAPO
from tpg.objectives.sequence_clip import SequenceClip
from tpg.objectives.vespo import VESPO

NAN = float("nan")
ROWS = [4, 7, 4, 7, 4, 9]
LENGTHS = [3, 1, 4, 2, 1, 3]
MASK = torch.tensor(
    [[1, 1, 1, 0], [1, 0, 0, 0], [0, 1, 1, 1], [1, 1, 0, 0], [1, 0, 0, 0], [1, 0, 1, 0]], dtype=torch.bool
)
"""Three groups interleaved; the third and the last response have a token that the policy did not choose."""
ACTIONS = [3, 1, 3, 2, 1, 2]
WEIGHTS = [1.0, -0.5, -2.0, 1.5, 0.25, 3.0]


@dataclass(frozen=True)
class Row:
    objective: Objective
    slopes: tuple[float, ...] = (1.0, -0.5, -2.0, 1.5, 0.25, 3.0)
    """What the ascent direction is on-policy at every token of a response, in units of its score."""


BY_LENGTH = (1 / 3, -0.5, -2 / 3, 0.75, 0.25, 1.5)
# The mean over the others of the difference to their weight: (3 + 0.75) / 2, -2, (-3 - 2.25) / 2, 2,
# (-0.75 + 2.25) / 2, and nothing for the last prompt's only response.
PAIRS = (1.875, -2.0, -2.625, 2.0, 0.75, 0.0)

OBJECTIVES = {
    "policy_gradient": Row(PolicyGradient()),
    "ppo_clip": Row(PPOClip()),
    "ppo_clip_higher": Row(PPOClip(clip_high=0.28)),
    "ppo_dual_clip": Row(PPOClip(dual_clip=3.0)),
    "ppo_unclipped": Row(PPOClip(clip_low=1.0, clip_high=1e9)),
    "sequence_clip": Row(SequenceClip()),
    "sequence_unclipped": Row(SequenceClip(clip_low=1.0, clip_high=1e9)),
    "gspo": Row(GSPO(), BY_LENGTH),
    "luspo": Row(LUSPO()),
    "cispo": Row(CISPO()),
    "cispo_min": Row(CISPO(max_ratio=1.1, min_ratio=0.9)),
    "sapo": Row(SAPO()),
    "vespo": Row(VESPO()),
    "vespo_steep": Row(VESPO(k_positive=9.0, lambda_positive=0.0, k_negative=9.0, lambda_negative=0.0)),
    "p3o_joint": Row(P3O(), PAIRS),
    "p3o_separate": Row(P3O(clipping="separate"), PAIRS),
    "p3o_none": Row(P3O(clipping="none"), PAIRS),
}

each_row = pytest.mark.parametrize("row", OBJECTIVES.values(), ids=OBJECTIVES)
each = pytest.mark.parametrize("objective", [row.objective for row in OBJECTIVES.values()], ids=OBJECTIVES)


def rubbish(values_BT):
    return torch.where(MASK, values_BT, NAN)


def batch(moved=0.1, dtype=torch.float64):
    """Log-probabilities that need a gradient, and a record; `moved` nats away from the policy before the update."""
    steps_BT = torch.arange(24, dtype=dtype).reshape(6, 4)
    logprobs_BT = rubbish(-1 - torch.sin(steps_BT).abs())
    trajectories = record(
        [[2]] * 6,
        [[3] * length for length in LENGTHS],
        row_B=torch.tensor(ROWS),
        action_mask_BT=MASK,
        weights_BT=rubbish(torch.tensor(WEIGHTS, dtype=dtype)[:, None].expand(6, 4)),
        old_logprobs_BT=logprobs_BT - moved * torch.cos(2 * steps_BT),
    )
    return logprobs_BT.requires_grad_(), trajectories


def ascent(objective, logprobs_BT, trajectories):
    """The gradient of the summed token losses, turned round; and the losses where they count."""
    losses_BT = objective(logprobs_BT, trajectories).losses_BT
    kept_BT = torch.where(trajectories.action_mask_BT, losses_BT, 0.0)
    (slope_BT,) = torch.autograd.grad(-kept_BT.sum(), logprobs_BT)
    return slope_BT, kept_BT.detach()


@each_row
@pytest.mark.parametrize("without_old", [True, False])
def test_on_policy_it_is_the_policy_gradient(row, without_old):
    logprobs_BT, trajectories = batch(moved=0.0)
    if without_old:
        trajectories = trajectories.replace(old_logprobs_BT=None)
    slope_BT, _ = ascent(row.objective, logprobs_BT, trajectories)
    expected_BT = torch.tensor(row.slopes, dtype=torch.float64)[:, None] * MASK
    torch.testing.assert_close(slope_BT, expected_BT, rtol=1e-12, atol=1e-12)


@each
def test_it_looks_at_the_policy_before_the_update_if_it_says_so(objective):
    on, off = (ascent(objective, *batch(moved))[0] for moved in (0.0, 0.01))
    assert torch.allclose(on, off, rtol=1e-6) is not objective.off_policy


@each
def test_tokens_that_do_not_count_hold_anything(objective):
    logprobs_BT, trajectories = batch()
    slope_BT, losses_BT = ascent(objective, logprobs_BT, trajectories)
    assert slope_BT.isfinite().all()
    assert not slope_BT[~MASK].any()
    clean = trajectories.replace(
        weights_BT=trajectories.weights_BT.nan_to_num(0.0), old_logprobs_BT=trajectories.old_logprobs_BT.nan_to_num(0.0)
    )
    clean_BT, clean_losses_BT = ascent(objective, logprobs_BT.detach().nan_to_num(0.0).requires_grad_(), clean)
    assert torch.equal(slope_BT, clean_BT)
    assert torch.equal(losses_BT, clean_losses_BT)


@each
def test_padding_changes_nothing(objective):
    logprobs_BT, trajectories = batch()
    slope_BT, losses_BT = ascent(objective, logprobs_BT, trajectories)
    padding_BT = torch.full((6, 3), NAN, dtype=torch.float64)
    wider_BT = torch.cat([logprobs_BT.detach(), padding_BT], dim=-1).requires_grad_()
    wide_slope_BT, wide_losses_BT = ascent(objective, wider_BT, widened(trajectories))
    torch.testing.assert_close(wide_slope_BT[:, :4], slope_BT, rtol=1e-12, atol=1e-15)
    torch.testing.assert_close(wide_losses_BT[:, :4], losses_BT, rtol=1e-12, atol=1e-15)
    assert not wide_slope_BT[:, 4:].any()


@each
def test_permuting_trajectories_permutes_losses(objective):
    logprobs_BT, trajectories = batch()
    order = torch.tensor([5, 2, 0, 1, 4, 3])
    slope_BT, losses_BT = ascent(objective, logprobs_BT, trajectories)
    permuted_BT = logprobs_BT.detach()[order].requires_grad_()
    other_slope_BT, other_losses_BT = ascent(objective, permuted_BT, trajectories.select(order))
    torch.testing.assert_close(other_slope_BT, slope_BT[order], rtol=1e-12, atol=1e-15)
    torch.testing.assert_close(other_losses_BT, losses_BT[order], rtol=1e-12, atol=1e-15)


@each
def test_parts_add_up_to_the_whole(objective):
    logprobs_BT, trajectories = batch()
    slope_BT, losses_BT = ascent(objective, logprobs_BT, trajectories)
    single = [[0], [1], [2], [3], [4], [5]]
    for part in [[0, 2, 4], [1, 3], [5]] if objective.needs_groups else single:
        part_BT = logprobs_BT.detach()[part].requires_grad_()
        part_slope_BT, part_losses_BT = ascent(objective, part_BT, trajectories.select(torch.tensor(part)))
        torch.testing.assert_close(part_slope_BT, slope_BT[part], rtol=1e-12, atol=1e-15)
        torch.testing.assert_close(part_losses_BT, losses_BT[part], rtol=1e-12, atol=1e-15)


def test_only_those_that_need_groups_look_at_other_responses():
    for row in OBJECTIVES.values():
        logprobs_BT, trajectories = batch()
        alone_BT, _ = ascent(row.objective, logprobs_BT, trajectories.replace(row_B=torch.arange(6)))
        together_BT, _ = ascent(row.objective, logprobs_BT, trajectories)
        assert torch.equal(alone_BT, together_BT) is not row.objective.needs_groups


@each
def test_only_the_current_log_probabilities_get_a_gradient(objective):
    logprobs_BT, trajectories = batch()
    fields = {"weights_BT": trajectories.weights_BT, "old_logprobs_BT": trajectories.old_logprobs_BT}
    needing = {name: tensor.detach().clone().requires_grad_() for name, tensor in fields.items()}
    result = objective(logprobs_BT, trajectories.replace(**needing))
    torch.where(MASK, result.losses_BT, 0.0).sum().backward()
    assert logprobs_BT.grad[MASK].any()
    assert all(tensor.grad is None for tensor in needing.values())
    assert not any(watched_BT.requires_grad for watched_BT in result.watched_BT.values())


@each
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("nats", [30.0, 200.0, 1e6])
def test_finite_on_extreme_ratios(objective, dtype, nats):
    for sign in (1.0, -1.0):
        logprobs_BT, trajectories = batch(dtype=dtype)
        old_BT = logprobs_BT.detach() + sign * nats
        slope_BT, losses_BT = ascent(objective, logprobs_BT, trajectories.replace(old_logprobs_BT=old_BT))
        assert slope_BT.dtype == losses_BT.dtype == dtype
        assert slope_BT.isfinite().all()
        assert losses_BT.isfinite().all()


@each
def test_weights_of_zero_give_no_gradient(objective):
    logprobs_BT, trajectories = batch()
    nothing = trajectories.replace(weights_BT=rubbish(torch.zeros(6, 4, dtype=torch.float64)))
    slope_BT, _ = ascent(objective, logprobs_BT, nothing)
    assert not slope_BT.any()


@each
def test_degenerate_batches_give_zero(objective):
    logprobs_BT, trajectories = batch()
    nobody = trajectories.replace(action_mask_BT=torch.zeros_like(MASK))
    slope_BT, losses_BT = ascent(objective, logprobs_BT, nobody)
    assert not slope_BT.any()
    assert not losses_BT.any()
    empty = trajectories.select(torch.tensor([], dtype=torch.long))
    assert objective(logprobs_BT[:0], empty).losses_BT.shape == (0, 4)


@each
def test_what_is_watched_is_a_number_for_every_token(objective):
    result = objective(*batch())
    assert set(result.watched_BT) <= {"ratio", "clip_ratio/region_mean"}
    for watched_BT in result.watched_BT.values():
        assert watched_BT.shape == MASK.shape
        assert watched_BT[MASK].isfinite().all()
    if objective.off_policy:
        assert "ratio" in result.watched_BT


@each
def test_taking_ingredients_away_ends(objective):
    seen, frontier = [], [objective]
    while frontier:
        current = frontier.pop()
        assert current not in current.without().values()
        seen.append(current)
        assert len(seen) < 20
        frontier += current.without().values()
