"""P3O's pairs, computed by hand."""

import math

import pydantic
import pytest
import torch
from builders import record

from tpg.objectives.p3o import P3O

LOGPROBS = [[-1.0, -2.0], [-0.5, -0.5], [-3.0, -1.0]]


def ascent(objective, log_ratios, weights, lengths=(2, 2, 2), logprobs=LOGPROBS, **fields):
    """Token losses, their slopes turned round, and what is watched; one log-ratio a response, on its first action."""
    count, width = len(weights), max(lengths)
    logprobs_BT = torch.tensor(logprobs, dtype=torch.float64)[:count, :width].requires_grad_()
    moved_BT = torch.zeros(count, width, dtype=torch.float64)
    moved_BT[:, -1] = torch.tensor(log_ratios)
    trajectories = record(
        [[2]] * count,
        [[3] * length for length in lengths[:count]],
        **{"row_B": torch.zeros(count, dtype=torch.long), "old_logprobs_BT": logprobs_BT.detach() - moved_BT} | fields,
    )
    weights_BT = torch.tensor(weights, dtype=torch.float64)[:, None] * trajectories.action_mask_BT
    result = objective(logprobs_BT, trajectories.replace(weights_BT=weights_BT))
    result.losses_BT.sum().backward()
    watched = {name: watched_BT[:, 0].tolist() for name, watched_BT in result.watched_BT.items()}
    return result.losses_BT.tolist(), (-logprobs_BT.grad).tolist(), watched


HALF, UP, FAR = math.log(0.5), math.log(1.1), math.log(2.0)

# Options, log-ratios, weights of two responses, ascent at each one's tokens, pairs where the clip binds.
PAIRS = [
    ({"clipping": "none"}, [0.0, 0.0], [1.0, 0.0], [1.0, -1.0], [0, 0]),
    ({"clipping": "none"}, [HALF, FAR], [1.0, 0.0], [0.5, -2.0], [0, 0]),
    ({"clipping": "none"}, [HALF, FAR], [1.5, 3.5], [-1.0, 4.0], [0, 0]),
    ({"clipping": "separate"}, [HALF, FAR], [1.0, 0.0], [0.5, -2.0], [0, 0]),
    ({"clipping": "separate"}, [FAR, HALF], [1.0, 0.0], [0.0, 0.0], [1, 1]),
    ({"clipping": "separate"}, [FAR, HALF], [0.0, 1.0], [-2.0, 0.5], [0, 0]),
    ({"clipping": "separate", "clip_high": 1.5, "clip_low": 0.6}, [FAR, HALF], [1.0, 0.0], [2.0, -0.5], [0, 0]),
    ({"clipping": "separate"}, [UP, -UP], [1.0, 0.0], [1.1, -1 / 1.1], [0, 0]),
    ({"clipping": "joint"}, [FAR, HALF], [1.0, 0.0], [1.0, -1.0], [0, 0]),
    ({"clipping": "joint"}, [FAR, 0.0], [1.0, 0.0], [1.2, -1.2], [1, 1]),
    ({"clipping": "joint"}, [0.0, FAR], [0.0, 1.0], [-1.2, 1.2], [1, 1]),
    ({"clipping": "joint"}, [HALF, HALF], [2.0, 0.0], [1.6, -1.6], [1, 1]),
    ({"clipping": "joint", "clip_low": 0.8}, [HALF, HALF], [2.0, 0.0], [0.5, -0.5], [0, 0]),
    ({"clipping": "joint", "clip_high": 0.28}, [UP, UP], [1.0, 0.0], [1.21, -1.21], [0, 0]),
]


@pytest.mark.parametrize(("options", "log_ratios", "weights", "slopes", "clipped"), PAIRS, ids=str)
def test_a_pair(options, log_ratios, weights, slopes, clipped):
    _, given, watched = ascent(P3O(**options), log_ratios, weights)
    assert given == [pytest.approx([slope] * 2) for slope in slopes]
    assert watched["clip_ratio/region_mean"] == clipped
    assert watched["ratio"] == pytest.approx([math.exp(r) for r in log_ratios])


def test_losses_are_spread_over_the_tokens_of_a_response():
    joint, *_ = ascent(P3O(), [0.0, FAR], [1.0, 0.0])
    assert joint == [pytest.approx([1.2 * 1.5] * 2), pytest.approx([-1.2 * 0.5] * 2)]  # of -1.2 d log pi: 3.6, -1.2
    separate, *_ = ascent(P3O(clipping="separate"), [0.0, FAR], [1.0, 0.0])
    assert separate == [pytest.approx([-0.5] * 2), pytest.approx([1.0] * 2)]


@pytest.mark.parametrize("clipping", ["joint", "separate", "none"])
def test_on_policy_a_pair_has_the_paper_s_gradient(clipping):
    """Half of `d (log pi(y_1) - log pi(y_2))`, the mean over the two responses; whatever the baseline."""
    for baseline in (0.0, 0.5, -7.0):
        _, slopes, _ = ascent(P3O(clipping=clipping), [0.0, 0.0], [0.75 - baseline, 0.25 - baseline])
        assert [[slope / 2 for slope in row] for row in slopes] == [
            pytest.approx([0.25] * 2),
            pytest.approx([-0.25] * 2),
        ]


@pytest.mark.parametrize("clipping", ["joint", "separate", "none"])
def test_larger_groups_take_all_pairs(clipping):
    """RLOO of the rewards 1, 0 and 5: less the mean of the other two."""
    _, slopes, _ = ascent(P3O(clipping=clipping), [0.0] * 3, [-1.0, -2.0, 3.0])
    assert slopes == [pytest.approx([-1.5] * 2), pytest.approx([-3.0] * 2), pytest.approx([4.5] * 2)]


def test_each_pair_of_a_larger_group_is_clipped_by_itself():
    _, separate, watched = ascent(P3O(clipping="separate"), [FAR, 0.0, 0.0], [1.0, 0.0, 3.0])
    assert separate[0] == pytest.approx([-2.0] * 2)  # (2 * -2 + clipped) / 2
    assert watched["clip_ratio/region_mean"] == [0.5, 0.0, 0.0]
    _, joint, watched = ascent(P3O(), [FAR, HALF, 0.0], [1.0, 0.0, 3.0])
    assert joint[0] == pytest.approx([(1.0 * 1 - 1.2 * 2) / 2] * 2)
    assert joint[1] == pytest.approx([(-1.0 * 1 - 0.8 * 3) / 2] * 2)
    assert watched["clip_ratio/region_mean"] == [0.5, 0.5, 1.0]


def test_only_responses_to_one_prompt_and_draw_are_pairs():
    rows, draws = torch.tensor([4, 4, 4]), torch.tensor([0, 1, 0])
    _, slopes, _ = ascent(P3O(), [0.0] * 3, [1.0, 5.0, 0.0], row_B=rows, draw_B=draws)
    assert slopes == [pytest.approx([1.0] * 2), [0.0, 0.0], pytest.approx([-1.0] * 2)]


def test_unscored_responses_are_in_no_pair():
    scored_B = torch.tensor([True, False, True])
    _, slopes, _ = ascent(P3O(), [0.0] * 3, [1.0, 0.0, 3.0], scored_B=scored_B)
    assert slopes == [pytest.approx([-2.0] * 2), [0.0, 0.0], pytest.approx([2.0] * 2)]


def test_the_weight_is_read_where_the_policy_chose():
    mask_BT = torch.tensor([[False, True], [True, False]])
    losses, slopes, _ = ascent(P3O(), [0.0, 0.0], [2.0, 0.5], action_mask_BT=mask_BT)
    assert slopes == [pytest.approx([0.0, 1.5]), pytest.approx([-1.5, 0.0])]
    assert losses == [pytest.approx([0.0, 3.0]), pytest.approx([-0.75, 0.0])]


def test_what_it_needs():
    assert P3O.needs_groups
    assert P3O.response_level
    assert P3O.off_policy


def test_options_are_checked():
    for fields in ({"clipping": "both"}, {"clip_low": 1.5}, {"clip_high": -0.1}):
        with pytest.raises(pydantic.ValidationError, match=next(iter(fields))):
            P3O(**fields)


def test_ingredients_that_bias():
    assert P3O(clip_low=0.3).without() == {"clipping": P3O(clipping="none", clip_low=0.3)}
    assert P3O(clipping="separate").without() == {"clipping": P3O(clipping="none")}
    assert P3O(clipping="none").without() == {}
