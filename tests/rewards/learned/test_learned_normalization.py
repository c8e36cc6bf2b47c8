"""On the scale of what was seen before, or on a fixed one; and clipped."""

import json
import math

import pytest
import torch
from pydantic import ValidationError
from small_models import saved, small_model

from tpg.errors import UserError
from tpg.rewards.base import Sample
from tpg.rewards.learned.normalization import Reference, Running, RunningNormalizer
from tpg.rewards.learned.options import Classifier
from tpg.rewards.model import RewardModel, check_terms

SAMPLES = [Sample(prompt="", response=letter * 3) for letter in "abcdefgh"]


def test_running_moments_by_hand():
    running = RunningNormalizer()
    assert running.normalized(7.0) == 7.0  # nothing was seen yet
    running.learn([1.0, 3.0])  # mean 2, squared distances 1 + 1
    assert running.normalized(3.0) == pytest.approx(1 / math.sqrt(2))
    running.learn([2.0, 8.0])  # mean 3.5, squared distances 6.25 + 0.25 + 2.25 + 20.25 = 29
    assert running.normalized(5.5) == pytest.approx(2 / math.sqrt(29 / 3))
    running.learn([])
    assert running.state() == {"count": 4, "mean": 3.5, "squares": 29.0, "std": pytest.approx(math.sqrt(29 / 3))}


def test_values_that_are_all_alike_are_centred_and_not_divided():
    running = RunningNormalizer()
    running.learn([2.0])
    assert running.normalized(5.0) == 3.0
    running.learn([2.0, 2.0])
    assert running.normalized(5.0) == 3.0


def test_the_order_of_an_iteration_s_values_changes_no_bit():
    values = torch.randn(1000, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).tolist()
    one, other = RunningNormalizer(), RunningNormalizer()
    one.learn(values)
    other.learn(values[::-1])
    assert one.state() == other.state()
    assert sum(values) != sum(values[::-1])  # what a plain sum would make of them


@pytest.fixture
def path(tmp_path):
    return saved(tmp_path / "model", small_model())


def reward(path, **options):
    return RewardModel({"rm": Classifier(path=path, **options)}, workers=1)


def alone(work):
    """What one process exchanges."""
    return [work()]


def test_an_iteration_is_normalised_by_those_before_it(path):
    with reward(path) as plain, reward(path, normalization=Running()) as running:
        raw = plain.score(SAMPLES).total
        assert running.score(SAMPLES[:5], 1).total == pytest.approx(raw[:5])
        assert running.score(SAMPLES[5:], 1).total == pytest.approx(raw[5:])  # still the first
        running.score(SAMPLES[:2])  # held-out responses are not seen
        running.learn(1, alone)
        mean, std = float(torch.tensor(raw).double().mean()), float(torch.tensor(raw).double().std())
        found = running.score(SAMPLES[:3], 2)
        assert found.total == pytest.approx([(value - mean) / std for value in raw[:3]])
        assert found.metrics == {"rm/raw_mean": pytest.approx(sum(raw[:3]) / 3)}
        assert running.score(SAMPLES[:3]).total == found.total
        assert running.state()["rm"]["count"] == 8


def test_of_an_iteration_that_was_begun_anew_nothing_is_left(path):
    with reward(path, normalization=Running()) as running:
        running.score(SAMPLES[:5], 1)
        running.score(SAMPLES, 2)
        running.learn(2, alone)
        assert running.state()["rm"]["count"] == 8
        running.learn(3, alone)
        assert running.state()["rm"]["count"] == 8


def test_processes_that_share_an_iteration_hold_the_moments_of_all_of_it(path):
    with (
        reward(path, normalization=Running()) as whole,
        reward(path, normalization=Running()) as first,
        reward(path, normalization=Running()) as second,
    ):
        whole.score(SAMPLES, 1)
        whole.learn(1, alone)
        first.score(SAMPLES[:3], 1)
        second.score(SAMPLES[3:], 1)
        told = [dict(model._seen[1]) for model in (first, second)]
        for model in (first, second):
            model.learn(1, lambda work: [work() and part for part in told])
            assert model.state()["rm"] == pytest.approx(whole.state()["rm"])
        assert first.state() == second.state()


def test_the_state_goes_through_a_checkpoint_file(path, tmp_path):
    with reward(path, normalization=Running()) as running, reward(path, normalization=Running()) as other:
        running.score(SAMPLES, 1)
        running.learn(1, alone)
        torch.save(running.state(), tmp_path / "state")
        other.restore(torch.load(tmp_path / "state", weights_only=True) | {"a term that has gone": {}})
        assert other.state() == running.state()
        assert other.score(SAMPLES, 2).total == running.score(SAMPLES, 2).total
        with reward(path) as plain:
            assert "rm" not in plain.state()
            plain.restore({})


def test_failures_are_not_seen(path):
    with reward(path, normalization=Running(), max_tokens=6) as running:
        found = running.score([*SAMPLES, Sample(prompt="", response="far too long")], 1)
        assert found.failures == {"rm": {"too long": 1}}
        running.learn(1, alone)
        assert running.state()["rm"]["count"] == 8


def test_a_fixed_scale_and_the_clip(path):
    with reward(path) as plain:
        raw = plain.score(SAMPLES).total
    middle = sorted(raw)[4]
    with reward(path, normalization=Reference(mean=middle, std=0.5), clip=0.75) as fixed:
        found = fixed.score(SAMPLES, 1)
    expected = [max(-0.75, min(0.75, 2 * (value - middle))) for value in raw]
    assert found.total == pytest.approx(expected)
    clipped = sum(abs(value) == 0.75 for value in expected)
    assert 0 < clipped < 8
    assert found.metrics == {"rm/raw_mean": pytest.approx(sum(raw) / 8), "rm/clipped": clipped / 8}


def test_a_clip_alone(path):
    with reward(path, clip=1e-6) as model:
        found = model.score(SAMPLES)
    assert set(found.total) <= {1e-6, -1e-6}
    assert found.metrics == {"rm/clipped": 1.0}


def test_reference_statistics_beside_the_weights(path, tmp_path):
    term = Classifier(path=path, normalization=Reference())
    remedy = (
        "reward_model.rm.normalization: the model comes without reward_statistics.json; give normalization.mean and"
        " normalization.std, or take {_target_: tpg.rewards.learned.normalization.Running}"
    )
    file = tmp_path / "model" / "reward_statistics.json"
    for content, message in [
        (None, remedy),
        ("{", f'reward_model.rm.normalization: {file} is not of the form {{"mean": 0.5, "std": 2.0}}, std above 0'),
        ('{"mean": 1, "std": 0}', f"reward_model.rm.normalization: {file} is not of the form"),
        ('{"mean": 1}', f"reward_model.rm.normalization: {file} is not of the form"),
    ]:
        if content is not None:
            file.write_text(content)
        with pytest.raises(UserError) as caught:
            check_terms({"rm": term}, ())
        assert str(caught.value).startswith(message)
    file.write_text(json.dumps({"mean": 0.25, "std": 2.0, "responses": 100}))
    check_terms({"rm": term}, ())
    with reward(path) as plain, reward(path, normalization=Reference()) as fixed:
        raw = plain.score(SAMPLES).total
        assert fixed.score(SAMPLES).total == pytest.approx([(value - 0.25) / 2 for value in raw])


@pytest.mark.parametrize("given", [{"mean": 1.0}, {"std": 1.0}])
def test_half_a_scale_is_none(given):
    with pytest.raises(UserError, match=r"^reward_model.rm.normalization: has only one of mean and std; give both"):
        check_terms({"rm": Classifier(path="org/name", normalization=Reference(**given))}, ())


def test_nothing_can_be_divided_by():
    with pytest.raises(ValidationError, match="greater than 0"):
        Reference(mean=0.0, std=0.0)
