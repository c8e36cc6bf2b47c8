import dataclasses

import pytest
import torch
from builders import record, scored, widened

from tpg.trajectories import FinishReason, Trajectories, concatenate


def three() -> Trajectories:
    return record(
        [[11], [12, 13], [14, 15, 16]],
        [[21, 22], [23], [24, 25, 26]],
        pad=9,
        rewards_B=torch.tensor([0.1, 0.2, 0.3]),
        reward_terms_B={"length": torch.tensor([1.0, 2.0, 3.0])},
        weights_BT=torch.arange(9.0).reshape(3, 3),
        finish_reason_B=torch.tensor([FinishReason.STOP, FinishReason.LENGTH, FinishReason.STOP]),
    )


def test_lengths_and_truncation():
    assert len(three()) == 3
    assert three().lengths_B.tolist() == [2, 1, 3]
    assert three().truncated_B.tolist() == [False, True, False]


@pytest.mark.parametrize(
    ("rows", "draws", "groups"),
    [
        ([4, 7, 4, 7, 4], [0, 0, 0, 0, 1], [0, 1, 0, 1, 2]),
        ([9, 9, 2], [1, 0, 1], [2, 0, 1]),
        ([5], [3], [0]),
        ([0, 1, 0], [0, 0, 0], [0, 1, 0]),
    ],
)
def test_groups_are_the_draws_of_a_row(rows, draws, groups):
    assert scored([0.0] * len(rows), rows=rows, draws=draws).group_B.tolist() == groups


@pytest.mark.parametrize("index", [[2, 0], [True, False, True]], ids=str)
def test_select(index):
    chosen = three().select(torch.tensor(index))
    order = [2, 0] if index == [2, 0] else [0, 2]
    assert chosen.row_B.tolist() == order
    assert chosen.prompt_ids_BP.tolist() == [[[9, 9, 11], [9, 12, 13], [14, 15, 16]][i] for i in order]
    assert chosen.response_ids_BT.tolist() == [[[21, 22, 9], [23, 9, 9], [24, 25, 26]][i] for i in order]
    assert chosen.reward_terms_B["length"].tolist() == [[1.0, 2.0, 3.0][i] for i in order]
    assert chosen.weights_BT.tolist() == [[[0.0, 1, 2], [3, 4, 5], [6, 7, 8]][i] for i in order]
    assert chosen.old_logprobs_BT is None


def test_select_nothing():
    nothing = three().select(torch.tensor([False] * 3)).trimmed()
    assert len(nothing) == 0
    assert nothing.response_ids_BT.shape == (0, 1)
    assert nothing.group_B.tolist() == []


def test_trimmed():
    narrow = three().select(torch.tensor([0, 1])).trimmed()
    assert narrow.prompt_ids_BP.tolist() == [[9, 11], [12, 13]]
    assert narrow.prompt_mask_BP.tolist() == [[False, True], [True, True]]
    assert narrow.response_ids_BT.tolist() == [[21, 22], [23, 9]]
    assert narrow.weights_BT.tolist() == [[0.0, 1.0], [3.0, 4.0]]
    assert narrow.rewards_B.tolist() == pytest.approx([0.1, 0.2])


def test_trimming_undoes_padding():
    assert_same(widened(three()).trimmed(), three())


def test_trimmed_keeps_a_column():
    empty = three().replace(response_mask_BT=torch.zeros(3, 3, dtype=torch.bool))
    assert empty.trimmed().response_ids_BT.tolist() == [[21], [23], [24]]


def test_concatenate_pads_to_the_widest():
    merged = concatenate([three().select(torch.tensor([i])).trimmed() for i in (0, 1, 2)])
    assert merged.prompt_mask_BP.tolist() == three().prompt_mask_BP.tolist()
    assert merged.response_mask_BT.tolist() == three().response_mask_BT.tolist()
    assert merged.prompt_ids_BP.tolist() == [[0, 0, 11], [0, 12, 13], [14, 15, 16]]
    assert merged.response_ids_BT.tolist() == [[21, 22, 0], [23, 0, 0], [24, 25, 26]]
    assert merged.weights_BT.tolist() == [[0.0, 1.0, 0.0], [3.0, 0.0, 0.0], [6.0, 7.0, 8.0]]
    assert merged.reward_terms_B["length"].tolist() == [1.0, 2.0, 3.0]
    assert merged.row_B.tolist() == [0, 1, 2]
    assert merged.values_BT is None


def test_to_moves_every_tensor():
    moved = three().to("meta")
    tensors = [value for value in vars(moved).values() if isinstance(value, torch.Tensor)]
    assert len(tensors) == 15
    assert all(tensor.is_meta for tensor in [*tensors, moved.reward_terms_B["length"]])
    assert not three().row_B.is_meta


def test_replace_makes_a_copy():
    before = three()
    after = before.replace(rewards_B=torch.tensor([5.0, 6.0, 7.0]))
    assert before.rewards_B.tolist() == pytest.approx([0.1, 0.2, 0.3])
    assert after.rewards_B.tolist() == [5.0, 6.0, 7.0]
    assert after.row_B is before.row_B
    with pytest.raises(dataclasses.FrozenInstanceError):
        before.rewards_B = after.rewards_B
    with pytest.raises(TypeError, match="reward_B"):
        before.replace(reward_B=after.rewards_B)


def assert_same(one: Trajectories, other: Trajectories) -> None:
    for name, value in vars(other).items():
        if isinstance(value, torch.Tensor):
            assert torch.equal(getattr(one, name), value), name
