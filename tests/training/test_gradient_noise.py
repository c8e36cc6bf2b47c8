"""The gradient's signal-to-noise ratio against literal numbers, and the step that it scales."""

import math

import pytest
import torch
from iterations import SMOOTH, gradients, token_reward, trained, weights
from lightning.pytorch import Callback
from test_configs import composed
from torch.testing import assert_close

from tpg.composition import to_experiment
from tpg.errors import UserError
from tpg.rollouts.transformers import Transformers
from tpg.training.gradient_noise import Coordinates, GradientNoise, MicroBatchSpread, Noise
from tpg.training.options import Optimizer, Update


def test_micro_batches_of_one_size():
    # Means of two responses each: [4, 0], [0, 2], [2, 4]; their mean is [2, 2] and squared distances from it 8, 4, 4.
    # tr(S)/N = 16 / 3 parts / 2 = 8/3.
    spread = MicroBatchSpread()
    for summed in ([4.0, 0.0], [4.0, 2.0], [6.0, 6.0]):
        spread.add(torch.tensor(summed) / 3, 2)
    noise = spread.noise
    assert noise.squared_norm == pytest.approx(8.0)
    assert noise.noise == pytest.approx(8 / 3)
    assert noise.responses == 6
    assert noise.snr == pytest.approx((8 - 8 / 3) / (8 / 3))
    assert noise.noise_scale == pytest.approx(6 * (8 / 3) / (16 / 3))
    assert noise.step_factor == pytest.approx(2 / (1 + 2))


def test_micro_batches_count_by_their_responses():
    # One response of gradient 6 and three of mean 2: g = 3; (1 * 3^2 + 3 * 1^2) / 4 = 3 is tr(S)/N.
    spread = MicroBatchSpread()
    spread.add(torch.tensor([1.5]), 1)
    spread.add(torch.tensor([3.0]), 3)
    assert spread.noise.squared_norm == pytest.approx(9.0)
    assert spread.noise.noise == pytest.approx(3.0)
    assert spread.noise.snr == pytest.approx(2.0)
    assert spread.noise.step_factor == pytest.approx(2 / 3)


def test_the_noise_is_unbiased_whatever_the_sizes():
    generator = torch.Generator().manual_seed(0)
    samples = torch.randn(20_000, 6, 2, generator=generator, dtype=torch.float64) * torch.tensor([1.0, 2.0]) + 0.5
    sizes, found, plain = (1, 3, 2), [], []
    for responses in samples:
        spread, summed = MicroBatchSpread(), torch.zeros(2)
        for part in responses.split(sizes):
            summed = summed + part.sum(0) / 6
            spread.add(summed, len(part))
        found.append(spread.noise.noise)
        plain.append(spread.noise.squared_norm - spread.noise.noise)
    assert sum(found) / len(found) == pytest.approx((1 + 4) / 6, rel=0.03)
    assert sum(plain) / len(plain) == pytest.approx(0.5, rel=0.05)


@pytest.mark.parametrize(
    ("squared_norm", "noise", "snr", "factor"),
    [(0.0, 0.0, 0.0, 0.0), (1.0, 2.0, 0.0, 0.0), (3.0, 0.0, math.inf, 1.0), (3.0, 1.0, 2.0, 2 / 3)],
)
def test_the_ends_of_the_ratio(squared_norm, noise, snr, factor):
    made = Noise(squared_norm, noise, 4)
    assert made.snr == snr
    assert made.step_factor == pytest.approx(factor)
    assert math.isnan(made.noise_scale) == (factor == 0)


def test_one_micro_batch_has_nothing_to_be_compared_with():
    spread = MicroBatchSpread()
    spread.add(torch.ones(2), 4)
    assert spread.noise is None


def test_coordinates_are_a_fixed_choice_of_the_gradients():
    parameters = [torch.nn.Parameter(torch.zeros(3, 100)), torch.nn.Parameter(torch.zeros(700))]
    parameters[0].grad = torch.arange(300.0).view(3, 100)
    parameters[1].grad = torch.arange(300.0, 1000.0)
    few, all_ = Coordinates(50), Coordinates(1000)
    chosen = few.of_gradient(parameters)
    assert 40 < len(chosen) <= 50
    assert (chosen.diff() > 0).all()
    assert (chosen >= 300).any()
    assert (chosen < 300).any()
    assert torch.equal(few.of_gradient(parameters), chosen)
    assert all_.of_gradient(parameters).tolist() == list(range(1000))
    parameters[0].grad = None
    assert all_.of_gradient(parameters)[:301].tolist() == [0.0] * 300 + [300.0]


class Rates(Callback):
    """The learning rate of each optimizer step, as the optimizer saw it and after it."""

    def __init__(self):
        self.during, self.after = [], []

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        group = optimizer.param_groups[0]
        self.during.append(group["lr"])
        if not self.after:
            optimizer.register_step_post_hook(lambda *_: self.after.append(group["lr"]))


def noisy(tmp_path, *callbacks, size=4, **options):
    return trained(tmp_path, update=Update(responses_per_microbatch=size), callbacks=callbacks, **options)


def micro_batch_gradients(module, size=4):
    """The share of each micro-batch in the first step's gradient, each by a backward pass of its own."""
    fresh = trained(module.trainer.default_root_dir, reward=lambda sample: 1.0)
    trajectories = module.experience.trajectories
    found = []
    for batch in module.loader:
        logprobs_BT = fresh.policy.statistics(batch.trajectories, 1.0).logprobs
        loss = -(batch.trajectories.weights_BT * logprobs_BT).sum() / len(trajectories)
        slopes = torch.autograd.grad(loss, list(fresh.parameters()))
        found.append((torch.cat([slope.flatten() for slope in slopes]), len(batch.trajectories)))
    return found


class Loaders(Callback):
    def on_train_epoch_start(self, trainer, pl_module):
        pl_module.loader = trainer.train_dataloader


def test_what_is_logged_is_the_spread_of_the_micro_batches_gradients(tmp_path):
    module = noisy(tmp_path, GradientNoise(), Loaders(), size=3)
    parts = micro_batch_gradients(module)
    assert len(parts) > 3
    total = sum(gradient for gradient, _ in parts)
    assert_close(total, gradients(module)[0], atol=1e-9, rtol=1e-6)
    responses = sum(size for _, size in parts)
    spread = sum(
        size / responses * (gradient * responses / size - total).square().sum() for gradient, size in parts
    ) / (len(parts) - 1)
    expected = Noise(float(total.square().sum()), float(spread), responses)
    assert module.metrics["gradient/snr"] == pytest.approx(expected.snr, rel=1e-5)
    assert "gradient/step_factor" not in module.metrics


def test_watching_changes_no_number(tmp_path):
    plain, watched = noisy(tmp_path, iterations=2), noisy(tmp_path, GradientNoise(), iterations=2)
    assert_close(weights(watched), weights(plain), atol=1e-9, rtol=1e-7)
    assert watched.metrics["gradient/snr"] >= 0


def test_the_step_is_scaled_and_the_learning_rate_restored(tmp_path):
    rates = Rates()
    optimizer = Optimizer(lr=0.1, eps=0.1, schedule="linear")
    module = noisy(tmp_path, GradientNoise(scales_step=True), rates, optimizer=optimizer, iterations=2)
    factor = module.metrics["gradient/step_factor"]
    assert len(rates.during) == 2
    assert rates.during[1] == pytest.approx(factor * 0.1 * 0.99)
    assert module.metrics["learning_rate"] == rates.during[1]
    assert rates.after == pytest.approx([0.1, 0.1 * 0.99])
    snr = module.metrics["gradient/snr"]
    assert factor == pytest.approx(snr / (1 + snr))


def test_a_scaled_step_is_that_much_of_the_whole_one(tmp_path):
    start = weights(trained(tmp_path, reward=lambda sample: 1.0))
    options = {"optimizer": SMOOTH, "reward": first_token_reward, "engine": MANY, "size": 16}
    whole = noisy(tmp_path, GradientNoise(), **options)
    scaled = noisy(tmp_path, GradientNoise(scales_step=True), **options)
    factor = scaled.metrics["gradient/step_factor"]
    assert 0 < factor < 1
    assert_close(weights(scaled) - start, factor * (weights(whole) - start), atol=1e-10, rtol=1e-6)


MANY = Transformers(prompts=8, responses_per_prompt=32, max_response_tokens=2)


def first_token_reward(sample):
    """A reward with a strong signal."""
    return float(sample.token_ids[0] < 50)


def test_a_step_of_one_micro_batch_says_so_once(tmp_path, capsys):
    module = noisy(tmp_path, GradientNoise(scales_step=True), size=16, iterations=2)
    assert capsys.readouterr().err.count("callbacks.gradient_noise: there is nothing to compare") == 1
    assert not any(name.startswith("gradient/") for name in module.metrics)
    assert_close(weights(module), weights(noisy(tmp_path, size=16, iterations=2)), atol=1e-12, rtol=0)


def test_micro_batches_are_whole_prompts_in_no_order_of_length(tmp_path):
    module = noisy(tmp_path, GradientNoise(), Loaders(), reward=token_reward)
    batches = [batch.trajectories for batch in module.loader]
    assert all(len(set(batch.row_B.tolist())) <= 2 for batch in batches)
    lengths = [float(batch.lengths_B.float().mean()) for batch in batches]
    assert lengths != sorted(lengths)


def test_the_option_composes():
    made = to_experiment(composed("callbacks=gradient_noise", "callbacks.gradient_noise.scales_step=true"))
    callback = made.callbacks["gradient_noise"]
    assert isinstance(callback, GradientNoise)
    assert callback.scales_step
    assert callback.coordinates.count == 1_000_000
    with pytest.raises(UserError, match=r"callbacks.gradient_noise: coordinates=0"):
        to_experiment(composed("callbacks=gradient_noise", "callbacks.gradient_noise.coordinates=0"))
