"""The record of single tokens that training writes: its numbers, its size, and how it is cut back."""

import json
import math
import sys

import pytest
import torch
from hydra.core.global_hydra import GlobalHydra
from iterations import token_reward, trained, weights
from lightning.pytorch import Callback
from test_end_to_end import trained as run_in_process
from torch.testing import assert_close

import tpg.show
from tpg.objectives.ppo_clip import PPOClip
from tpg.policies.tiny import character_tokenizer
from tpg.training import token_record
from tpg.training.options import Checkpointing, Optimizer, Update
from tpg.training.run_folder import RunFolder
from tpg.training.token_record import TokenRecorder, TokenTexts, recorded_responses


class Before(Callback):
    """The log-probabilities of every response when the update begins."""

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if batch_idx == 0:
            self.logprobs_BT = logprobs(pl_module)


@torch.no_grad()
def logprobs(module):
    return module.policy.statistics(module.experience.trajectories, 1.0).logprobs


def recorded(tmp_path, *, responses=64, every=10, iterations=1, **options):
    """The module, the folder, and what was there before the last update."""
    folder, before = RunFolder(tmp_path), Before()
    recorder = TokenRecorder(folder, Checkpointing(every=every, recorded_responses=responses), iterations)
    module = trained(tmp_path, iterations=iterations, callbacks=[before, recorder], **options)
    return module, folder, before


def lines(folder, iteration):
    file = folder.tokens / f"iteration-{iteration:06d}.jsonl"
    return [json.loads(line) for line in file.read_text().split("\n") if line]


SEVERAL = {"update": Update(epochs=2, responses_per_minibatch=8, responses_per_microbatch=3), "objective": PPOClip()}


@pytest.mark.parametrize("options", [{}, SEVERAL], ids=["one step", "several steps"])
def test_the_change_is_the_final_policys_log_probability_less_the_first_ones(tmp_path, options):
    module, folder, before = recorded(tmp_path, **options)
    trajectories, after_BT = module.experience.trajectories, logprobs(module)
    records = lines(folder, 1)
    assert len(records) == len(trajectories) == 16
    moved = 0.0
    for i, record in enumerate(records):
        mask_T = trajectories.response_mask_BT[i]
        for name, values_BT in {
            "changes": after_BT - before.logprobs_BT,
            "logprobs": trajectories.rollout_logprobs_BT,
            "weights": trajectories.weights_BT,
        }.items():
            found = torch.tensor(record[name], dtype=torch.float64)
            assert_close(found, values_BT[i][mask_T].double(), atol=1e-6, rtol=1e-5)
        moved = max(moved, *map(abs, record["changes"]))
    assert moved > 1e-3


def test_a_policy_that_has_not_moved_changes_nothing(tmp_path):
    _, folder, _ = recorded(tmp_path, reward=lambda sample: 0.5, dtype=torch.float32)
    assert {change for record in lines(folder, 1) for change in record["changes"]} == {0.0}


def test_a_response_is_told_whole(tmp_path):
    module, folder, _ = recorded(tmp_path)
    trajectories, texts = module.experience.trajectories, TokenTexts(module.policy.tokenizer)
    for i, record in enumerate(lines(folder, 1)):
        sample = module.experience.scored.samples[i]
        assert record["tokens"] == texts(sample.token_ids)
        assert (record["prompt"], record["answer"]) == (sample.prompt, sample.answer)
        assert record["reward"] == record["rewards"]["term"] == pytest.approx(token_reward(sample))
        assert (record["row"], record["draw"]) == (int(trajectories.row_B[i]), int(trajectories.draw_B[i]))
        assert record["index"] == i % 4
        assert record["truncated"] == sample.truncated
        assert record["kept"] is True
        assert record["iteration"] == 1


def test_what_is_unscored_has_no_reward_and_is_out_of_the_update(tmp_path):
    def reward(sample):
        return math.nan if len(sample.token_ids) % 2 else token_reward(sample)

    _, folder, _ = recorded(tmp_path, reward=reward)
    odd = [record for record in lines(folder, 1) if len(record["tokens"]) % 2]
    assert odd
    assert all(record["reward"] is None and record["rewards"] == {"term": None} for record in odd)
    assert not any(record["kept"] for record in odd)


def test_the_first_the_last_and_every_so_many_iterations_are_recorded(tmp_path):
    module, folder, _ = recorded(tmp_path, every=3, iterations=7, optimizer=Optimizer(lr=1e-3))
    assert sorted(path.name for path in folder.tokens.iterdir()) == [
        f"iteration-{iteration:06d}.jsonl" for iteration in (1, 3, 6, 7)
    ]
    stages = sum(value for name, value in module.metrics.items() if name.startswith("timing_s/"))
    assert module.metrics["timing_s/record"] > 0
    assert stages == pytest.approx(module.metrics["step_time"])


def test_recording_changes_no_number(tmp_path):
    module, _, _ = recorded(tmp_path, every=1, iterations=2, **SEVERAL)
    assert torch.equal(weights(module), weights(trained(tmp_path, iterations=2, **SEVERAL)))


def test_nothing_is_recorded_on_request(tmp_path):
    module, folder, _ = recorded(tmp_path, responses=0)
    assert not folder.tokens.exists()
    assert "timing_s/record" not in module.metrics


@pytest.mark.parametrize(("responses", "expected"), [(16, 16), (15, 12), (11, 8), (4, 4), (1, 4)])
def test_whole_groups_are_recorded_while_they_are_so_few(tmp_path, responses, expected):
    trajectories = trained(tmp_path).experience.trajectories
    assert recorded_responses(trajectories, responses).tolist() == list(range(expected))


def test_long_responses_leave_fewer(tmp_path, monkeypatch):
    trajectories = trained(tmp_path).experience.trajectories
    two = int(trajectories.lengths_B[:8].sum())
    monkeypatch.setattr(token_record, "MOST_TOKENS", two)
    assert len(recorded_responses(trajectories, 64)) == 8
    monkeypatch.setattr(token_record, "MOST_TOKENS", two - 1)
    assert len(recorded_responses(trajectories, 64)) == 4


def test_a_token_keeps_its_special_text():
    tokenizer = character_tokenizer()
    ids = tokenizer("a b\n").input_ids
    assert TokenTexts(tokenizer)([*ids, 1, 0, 2]) == ["a", " ", "b", "\n", "<eos>", "<pad>", "<unk>"]


class SpaceEater:
    """A tokenizer that drops the space before a text's first token."""

    vocabulary = ("a", " the", "Ġ", " cat")

    def encode(self, text, add_special_tokens):
        return [self.vocabulary.index(text)]

    def decode(self, token_ids, skip_special_tokens, clean_up_tokenization_spaces):
        assert (skip_special_tokens, clean_up_tokenization_spaces) == (False, False)
        return "".join(self.vocabulary[i] for i in token_ids).removeprefix(" ")


def test_a_token_keeps_the_space_before_it():
    assert TokenTexts(SpaceEater())([1, 3, 0]) == [" the", " cat", "a"]


def test_records_of_later_iterations_and_torn_ones_are_cut_away(tmp_path):
    folder = RunFolder(tmp_path / "run")
    folder.create("seed: 1\n")
    folder.cut_back(0)
    for iteration in (1, 2, 4):
        folder.write_tokens(iteration, [f'{{"iteration": {iteration}}}'])
    (folder.tokens / "iteration-000005.tmp").write_text('{"itera')
    folder.cut_back(2)
    assert [path.name for path in sorted(folder.tokens.iterdir())] == [
        "iteration-000001.jsonl",
        "iteration-000002.jsonl",
    ]
    assert (folder.tokens / "iteration-000002.jsonl").read_text() == '{"iteration": 2}\n'
    folder.cut_back(0)
    assert list(folder.tokens.iterdir()) == []


def test_a_run_leaves_a_record_that_is_shown(tmp_path, monkeypatch, capsys):
    folder, _, _ = run_in_process(tmp_path / "run", "iterations=2", "checkpoint.every=1")
    assert [path.name for path in sorted(folder.tokens.iterdir())] == [
        "iteration-000001.jsonl",
        "iteration-000002.jsonl",
    ]
    assert all(float(row["timing_s/record"]) > 0 for row in folder.rows())
    completions = [json.loads(line) for line in folder.completions.open()]
    for record, completion in zip(lines(folder, 2), completions[16:], strict=True):
        text = "".join(token for token in record["tokens"] if token not in ("<eos>", "<pad>", "<unk>"))
        assert text == completion["response"]
        assert (record["reward"], record["rewards"]) == (completion["reward"], completion["rewards"])
    capsys.readouterr()
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    monkeypatch.setenv("COLUMNS", "120")
    GlobalHydra.instance().clear()
    monkeypatch.setattr(sys, "argv", ["tpg-show", f"run={folder.path}", "filter=biggest_weights", "colour=change"])
    tpg.show.main()
    GlobalHydra.instance().clear()
    out = capsys.readouterr().out
    assert "iteration 2, prompt " in out
    assert "⟨+" in out
