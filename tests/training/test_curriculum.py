"""Curricula in iterations of a small policy: what is learned from and counted, and that stopping changes nothing."""

import copy
import math
from dataclasses import replace

import pytest
import torch
from iterations import ENGINE, gradients, token_reward, trained, weights

from tpg.estimators.remax import ReMax
from tpg.mismatch import Truncated
from tpg.training.curriculum.base import NoCurriculum
from tpg.training.curriculum.difficulty import DifficultyBalanced, DifficultyOrdered
from tpg.training.curriculum.dynamic_sampling import DynamicSampling
from tpg.training.curriculum.ghpo import GHPO
from tpg.training.module import IterationCallback
from tpg.training.options import Update

FEW = replace(ENGINE, prompts=2, responses_per_prompt=2)
CLOCK = ("timing_s/", "step_time", "perf/")
SOLUTION = "1234567"


def rarely(sample):
    """One response in five succeeds."""
    return float(sample.token_ids[-1] % 5 == 0)


def helped(sample):
    """Succeeds where the response begins with at least half of the solution, but for some."""
    return float(sample.response.startswith("1234") and sample.token_ids[-1] % 3 > 0)


class Watch(IterationCallback):
    """The experience and the row of each iteration; writes a checkpoint after one of them."""

    def __init__(self, checkpoint=None, save_after=0):
        self.experiences, self.rows = [], []
        self.checkpoint, self.save_after = checkpoint, save_after

    def on_iteration_start(self, module, iteration):
        self.policy = copy.deepcopy(module.policy)

    def on_iteration_end(self, module, iteration):
        self.experiences.append(module.experience)
        self.rows.append({name: value for name, value in module.metrics.items() if not name.startswith(CLOCK)})
        if iteration == self.save_after:
            module.trainer.save_checkpoint(self.checkpoint)


def watched(tmp_path, curriculum, watch=None, **options):
    watch = watch or Watch()
    options = {"engine": FEW, "reward": rarely, "iterations": 4, "answer": SOLUTION, **options}
    return trained(tmp_path, curriculum=curriculum, callbacks=[watch], **options), watch


def rows_of(experience):
    """The prompt rows that are learned from, one a group."""
    return experience.trajectories.row_B[::2].tolist()


def test_dynamic_sampling_learns_from_mixed_groups_of_other_prompts(tmp_path):
    _, watch = watched(tmp_path, DynamicSampling(max_rounds=4))
    assert max(row["curriculum/rounds"] for row in watch.rows) > 1
    for experience, row in zip(watch.experiences, watch.rows, strict=True):
        rewards_NG = experience.trajectories.rewards_B.view(2, 2)
        mixed = int((rewards_NG[:, 0] != rewards_NG[:, 1]).sum())
        assert row["curriculum/missing_groups"] == 2 - mixed
        assert len(set(rows_of(experience))) == 2
        drawn = row["curriculum/prompts_drawn"]
        assert drawn == 2 * row["curriculum/rounds"] <= 8
        assert drawn == 2 + row["curriculum/dropped_groups"] + row["curriculum/surplus_groups"]
        assert row["curriculum/mixed"] * drawn == pytest.approx(mixed + row["curriculum/surplus_groups"])
        if drawn < 8:
            assert mixed == 2


def test_dynamic_sampling_goes_on_in_the_order_of_prompts_and_counts_all_tokens(tmp_path):
    class Calls(Watch):
        def __init__(self):
            super().__init__()
            self.generated = []

        def on_fit_start(self, trainer, pl_module):
            engine = pl_module.collector.engine
            generate = engine.generate

            def counted(prefixes, *arguments, **options):
                made = generate(prefixes, *arguments, **options)
                self.generated.append(([prefix.row for prefix in prefixes], int(made.action_mask_BT.sum())))
                return made

            engine.generate = counted

    module, watch = watched(tmp_path, DynamicSampling(max_rounds=4), Calls())
    order = [module.collector.stream.row_at(place) for place in range(64)]
    drawn = [row for rows, _ in watch.generated for row in rows]
    assert len(drawn) == sum(row["curriculum/prompts_drawn"] for row in watch.rows)
    place, calls = 0, iter(watch.generated)
    for row in watch.rows:
        seen = []
        for round_ in range(int(row["curriculum/rounds"])):
            rows, _ = next(calls)
            for each in rows:
                while round_ and order[place] in seen:
                    place += 1  # a prompt that this iteration has had
                assert each == order[place]
                seen.append(each)
                place += 1
    assert module.num_tokens == sum(tokens for _, tokens in watch.generated)


def test_without_enough_mixed_groups_the_rest_weighs_nothing(tmp_path):
    module, watch = watched(tmp_path, DynamicSampling(max_rounds=3), reward=lambda sample: 1.0)
    assert [row["curriculum/rounds"] for row in watch.rows] == [3.0] * 4
    assert [row["curriculum/missing_groups"] for row in watch.rows] == [2.0] * 4
    assert [row["curriculum/all_solved"] for row in watch.rows] == [1.0] * 4
    assert [row["completions/updated"] for row in watch.rows] == [0.0] * 4
    assert all(not gradient.any() for gradient in gradients(module))
    _, unbounded = watched(tmp_path, DynamicSampling(max_rounds=100), reward=lambda sample: 1.0)
    assert [row["curriculum/prompts_drawn"] for row in unbounded.rows] == [8.0] * 4  # each of the prompts once


def test_dynamic_sampling_is_the_plain_method_where_all_groups_are_mixed(tmp_path):
    def reward(sample):
        return sum(place * token for place, token in enumerate(sample.token_ids, 1)) % 1009 / 1009

    plain, expected = watched(tmp_path, NoCurriculum(), reward=reward)
    module, watch = watched(tmp_path, DynamicSampling(), reward=reward)
    assert torch.equal(weights(module), weights(plain))
    assert [rows_of(each) for each in watch.experiences] == [rows_of(each) for each in expected.experiences]


@pytest.mark.parametrize(
    "curriculum",
    [
        DynamicSampling(max_rounds=3),
        GHPO(),
        DifficultyBalanced(decay=0.9),
        DifficultyOrdered(iterations_to_all=4),
    ],
    ids=lambda curriculum: type(curriculum).__name__,
)
def test_a_resumed_run_gives_the_same_numbers(tmp_path, curriculum):
    path = tmp_path / "boundary.ckpt"
    whole, watch = watched(tmp_path, curriculum, Watch(path, save_after=2))
    resumed, continued = watched(tmp_path, curriculum, checkpoint=path)
    assert continued.rows == watch.rows[2:]
    assert torch.equal(weights(resumed), weights(whole))
    state = torch.load(path, weights_only=True)["tpg"]["method_state"]
    assert ("curriculum" in state) is not isinstance(curriculum, GHPO)
    if "curriculum" in state:  # what it holds matters
        state["curriculum"] = {name: value * 0 for name, value in state["curriculum"].items()}
        forgotten = torch.load(path, weights_only=True)
        forgotten["tpg"]["method_state"] = state
        torch.save(forgotten, path)
        _, other = watched(tmp_path, curriculum, checkpoint=path)
        assert other.rows != continued.rows


def test_hints_come_level_by_level_and_take_the_place_of_prompts_that_fail(tmp_path):
    _, watch = watched(tmp_path, GHPO(), reward=helped, iterations=3)
    hinted = {25: 2, 50: 4, 75: 6}  # of seven tokens, rounded up
    for experience, row in zip(watch.experiences, watch.rows, strict=True):
        made = experience.trajectories
        assert row["curriculum/failed_groups"] == 2
        assert row["curriculum/unhinted_reward"] == 0.0
        assert row["curriculum/hinted/25"] == 0.0
        assert row["curriculum/hinted/50"] + row["curriculum/hinted/75"] == 1.0
        given_B = (made.response_mask_BT & ~made.action_mask_BT).sum(-1)
        assert made.position_B.tolist() == given_B.tolist()
        shares = [sum(given_B[::2] == length) / 2 for length in hinted.values()]
        assert [float(share) for share in shares] == [row[f"curriculum/hinted/{level}"] for level in hinted]
        for i, sample in enumerate(experience.scored.samples):
            assert sample.response.startswith(SOLUTION[: given_B[i]])  # what rewards see
            assert len(sample.token_ids) <= FEW.max_response_tokens
            assert list(sample.token_ids[: given_B[i]]) == made.response_ids_BT[i, : given_B[i]].tolist()
        assert not made.weights_BT[~made.action_mask_BT].any()
    assert watch.rows[0]["num_tokens"] > int(watch.experiences[0].trajectories.action_mask_BT.sum())


def test_the_gradient_with_a_hint_is_that_of_the_continuation_given_prompt_and_hint(tmp_path):
    module, watch = watched(tmp_path, GHPO(), reward=helped, iterations=1)
    made, policy = watch.experiences[0].trajectories, watch.policy
    terms = []
    for i in range(len(made)):
        prompt = made.prompt_ids_BP[i][made.prompt_mask_BP[i]]
        response = made.response_ids_BT[i][made.response_mask_BT[i]]
        logits_SV = policy.model(input_ids=torch.cat([prompt, response])[None]).logits[0, len(prompt) - 1 : -1]
        logprobs_T = logits_SV.log_softmax(-1).gather(-1, response[:, None])[:, 0]
        terms.append(logprobs_T[int(made.position_B[i]) :].sum())
    rewards = made.rewards_B.view(2, 2).double()
    advantages_B = (rewards - rewards.flip(-1)).flatten()
    assert advantages_B.any()
    loss = -(advantages_B * torch.stack(terms)).mean()
    expected = torch.cat([slope.flatten() for slope in torch.autograd.grad(loss, list(policy.parameters()))])
    torch.testing.assert_close(gradients(module)[0], expected, atol=1e-9, rtol=1e-6)


def test_prompts_that_succeed_get_no_hint_and_greedy_baselines_begin_with_the_same_hint(tmp_path):
    plain, _ = watched(tmp_path, NoCurriculum(), reward=token_reward)
    module, watch = watched(tmp_path, GHPO(), reward=token_reward)
    assert torch.equal(weights(module), weights(plain))
    assert all(row["curriculum/hinted/25"] == 0.0 for row in watch.rows)
    seen = []

    def noted(sample):
        seen.append(sample.response)
        return helped(sample)

    watched(tmp_path, GHPO(levels=[0.5]), reward=noted, estimator=ReMax(), iterations=1)
    assert len(seen) == 4 + 4 + 2  # without hints, with them, and a greedy one each
    assert all(text.startswith("1234") for text in seen[4:])


def test_no_room_for_a_hint_is_counted(tmp_path):
    for answer in ("a", "a" * 80):
        _, watch = watched(tmp_path, GHPO(), reward=lambda sample: 0.0, answer=answer, iterations=1)
        assert watch.rows[0]["curriculum/without_hint"] == 2.0
        assert watch.rows[0]["curriculum/hinted/75"] == 0.0
    _, watch = watched(tmp_path, GHPO(), reward=lambda sample: math.nan, iterations=1)
    assert watch.rows[0]["curriculum/failed_groups"] == 0.0  # unscored is not failed


def test_truncated_responses_leave_the_loss_but_not_their_groups_baseline(tmp_path):
    _, expected = watched(tmp_path, NoCurriculum(), engine=ENGINE, reward=token_reward, iterations=1)
    module, watch = watched(
        tmp_path, NoCurriculum(mask_truncated=True), engine=ENGINE, reward=token_reward, iterations=1
    )
    whole, masked = (each.experiences[0].trajectories for each in (expected, watch))
    cut_B = whole.truncated_B
    assert 0 < int(cut_B.sum()) < len(cut_B)
    assert torch.equal(masked.weights_BT[~cut_B], whole.weights_BT[~cut_B])
    assert not masked.weights_BT[cut_B].any()
    assert watch.rows[0]["completions/masked"] == float(cut_B.sum())
    assert watch.rows[0]["completions/dropped"] == 0.0
    (index,) = module.collector.loader(watch.experiences[0]).minibatches
    assert sorted(index.tolist()) == (~cut_B).nonzero().flatten().tolist()  # the mean is over these alone


def test_all_truncated_is_survived(tmp_path):
    short = replace(ENGINE, max_response_tokens=1)
    module, watch = watched(
        tmp_path, NoCurriculum(mask_truncated=True), engine=short, reward=token_reward, update=Update(epochs=2)
    )
    assert len(watch.rows) == 4
    assert watch.rows[0]["completions/masked"] >= 12
    assert weights(module).isfinite().all()


def test_a_column_orders_prompts_that_are_generated_ahead(tmp_path):
    lagged = replace(FEW, lag=1)
    ordered = DifficultyOrdered(column="answer", start_share=0.5)
    path = tmp_path / "ahead.ckpt"
    options = {"engine": lagged, "mismatch": Truncated(cap=1e9), "answer": "3", "reward": token_reward}
    whole, watch = watched(tmp_path, ordered, Watch(path, save_after=2), **options)
    resumed, continued = watched(tmp_path, ordered, checkpoint=path, **options)
    assert torch.equal(weights(resumed), weights(whole))
    assert continued.rows == watch.rows[2:]
    expected = [[prefix.row for prefix in ordered.prompts(whole.collector.draws(k, {}))] for k in range(1, 5)]
    assert [rows_of(each) for each in watch.experiences] == expected
