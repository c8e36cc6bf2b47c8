"""Rewards that are begun while the rest is generated are those that come afterwards."""

import math
import time

import pytest
import torch
from builders import prefix, tiny_policy
from iterations import FunctionReward

from tpg.rewards.base import Told
from tpg.rewards.length import LengthTarget
from tpg.rewards.model import RewardModel
from tpg.rollouts.engine import Finished
from tpg.rollouts.sampling import Sampling
from tpg.rollouts.transformers import Transformers
from tpg.tasks.base import Example
from tpg.training.scoring import Scored, Scoring, joined, score
from tpg.trajectories import FinishReason

PREFIXES = [prefix([40, 41, 42], 3, 4, row=1), prefix([50], 3, 4, row=0)]
EXAMPLES = (Example("first", answer="1"), Example("second", answer="2"))
ENGINE = Transformers(batch_responses=3)


@pytest.fixture(scope="module")
def policy():
    made = tiny_policy(hidden_size=16, layers=1)
    made.model.generation_config.eos_token_id = [1, *range(60, 80)]
    return made


@pytest.fixture(scope="module")
def rollout(policy):
    finished = []
    rollout = ENGINE.build(policy).generate(PREFIXES, Sampling(), on_finished=finished.append)
    return rollout, finished


@pytest.fixture(scope="module")
def reward_model():
    with RewardModel({"length": LengthTarget(target_tokens=2, tolerance_tokens=4)}, workers=1) as model:
        yield model


def test_an_engine_hands_over_what_the_record_will_hold(rollout):
    trajectories, finished = rollout
    assert [[response.place for response in part] for part in finished] == [[0, 1, 2], [3, 4, 5]]
    for response in (response for part in finished for response in part):
        ids_T, mask_T = (getattr(trajectories, f"response_{what}_BT")[response.place] for what in ("ids", "mask"))
        assert list(response.token_ids) == ids_T[mask_T].tolist()
        assert response.reason == trajectories.finish_reason_B[response.place]
    assert {response.reason for part in finished for response in part} == {FinishReason.STOP, FinishReason.LENGTH}


@pytest.mark.parametrize("order", [[0, 1, 2, 3, 4, 5], [5, 2, 0, 1, 4, 3], [4, 2], [], [1, 1, 3, 1]])
def test_rewards_do_not_depend_on_when_responses_finish(policy, rollout, reward_model, order):
    trajectories, finished = rollout
    by_place = {response.place: response for part in finished for response in part}
    scoring = Scoring(PREFIXES, EXAMPLES, policy, reward_model)
    for place in order:
        scoring.finished([by_place[place]])
    given, expected = scoring.scored(trajectories), score(trajectories, EXAMPLES, policy, reward_model)
    assert given.samples == expected.samples
    assert [sample.answer for sample in given.samples] == ["2"] * 3 + ["1"] * 3
    assert [sample.truncated for sample in given.samples] == trajectories.truncated_B.tolist()
    assert torch.equal(given.trajectories.rewards_B, expected.trajectories.rewards_B)
    assert len(set(given.trajectories.rewards_B.tolist())) > 1
    assert given.trajectories.scored_B.all()


def test_each_response_is_scored_once_and_at_once(policy, rollout, reward_model, monkeypatch):
    trajectories, finished = rollout
    submitted = []
    submit = reward_model.submit

    def counting(samples):
        submitted.append([submit(samples), samples])
        return submitted[-1][0]

    monkeypatch.setattr(reward_model, "submit", counting)
    scoring = Scoring(PREFIXES, EXAMPLES, policy, reward_model)
    scoring.finished(finished[0])
    deadline = time.monotonic() + 30
    jobs = [job for pending in submitted[0][0] for job in pending.jobs]
    while not all(job.future.done() for job in jobs) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert len(jobs) == 3
    assert all(job.future.done() for job in jobs)
    scoring.scored(trajectories)
    assert [len(samples) for _, samples in submitted] == [3, 3]


def test_a_reward_model_without_workers_scores_when_all_are_there(policy, rollout):
    trajectories, finished = rollout
    calls = []

    def reward(sample):
        calls.append(sample)
        return math.nan if sample.answer == "2" else 1.0

    scoring = Scoring(PREFIXES, EXAMPLES, policy, FunctionReward(reward))
    scoring.finished(finished[0])
    assert calls == []
    scored = scoring.scored(trajectories).trajectories
    assert len(calls) == 6
    assert scored.scored_B.tolist() == [False] * 3 + [True] * 3
    assert scored.rewards_B.tolist() == [0.0] * 3 + [1.0] * 3


def test_rewards_of_other_tokens_than_the_records_are_noticed(policy, rollout, reward_model):
    scoring = Scoring(PREFIXES, EXAMPLES, policy, reward_model)
    scoring.finished([Finished(0, (3, 3), FinishReason.STOP)])
    with pytest.raises(AssertionError, match="other tokens"):
        scoring.scored(rollout[0])


def test_what_terms_tell_of_shares_adds_up(rollout):
    trajectories = rollout[0]
    parts = [
        Scored(trajectories, (), {}, {}, {"judge/tokens": Told(240.0), "judge/seconds": Told(6.0, 2.0)}),
        Scored(trajectories, (), {}, {}, {"judge/tokens": Told(120.0), "judge/seconds": Told(1.0, 4.0)}),
        Scored(trajectories, (), {}, {}, {"judge/tokens": Told(0.0), "judge/seconds": Told(0.0, 0.0)}),
    ]
    assert joined(parts).metrics == {"judge/tokens": 360.0, "judge/seconds": pytest.approx(7 / 6)}
    assert joined(parts[2:]).metrics == {"judge/tokens": 0.0, "judge/seconds": 0.0}
