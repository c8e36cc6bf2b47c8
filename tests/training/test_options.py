"""The options of a run that are no method."""

import pytest
import torch
from pydantic import ValidationError

from tpg.training.options import Evaluation, Optimizer, Update


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, [1, 1, 1, 1, 1, 1, 1]),
        ({"warmup_steps": 2}, [0.5, 1, 1, 1, 1, 1, 1]),
        ({"schedule": "linear"}, [1, 5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6, 0]),
        ({"schedule": "linear", "warmup_steps": 2}, [0.5, 1, 1, 0.75, 0.5, 0.25, 0]),
        ({"schedule": "cosine"}, [1, 0.9330127, 0.75, 0.5, 0.25, 0.0669873, 0]),
        ({"schedule": "cosine", "warmup_steps": 4}, [0.25, 0.5, 0.75, 1, 1, 0.5, 0]),
        ({"schedule": "cosine", "warmup_steps": 8}, [0.125, 0.25, 0.375, 0.5, 0.625, 0.75, 0.875]),
    ],
)
def test_the_factors_of_a_schedule_of_six_steps(options, expected):
    optimizer = Optimizer(**options)
    assert [optimizer.factor(step, 6) for step in range(7)] == pytest.approx(expected)
    assert optimizer.factor(100, 6) == pytest.approx(expected[-1] if options.get("warmup_steps") != 8 else 1 - 1)


def test_the_optimizer_trains_what_is_trainable_at_the_scheduled_rate():
    module = torch.nn.Linear(2, 1)
    module.bias.requires_grad_(False)
    options = Optimizer(lr=0.5, warmup_steps=2, weight_decay=0.1, betas=(0.5, 0.75), eps=0.25)
    optimizer, schedule = options.build(module, 4)
    group = optimizer.param_groups[0]
    assert [id(parameter) for parameter in group["params"]] == [id(module.weight)]
    assert (group["betas"], group["eps"], group["weight_decay"]) == ((0.5, 0.75), 0.25, 0.1)
    rates = []
    for _ in range(3):
        rates.append(group["lr"])
        optimizer.step()
        schedule.step()
    assert rates == [0.25, 0.5, 0.5]


@pytest.mark.parametrize(
    ("options", "responses", "steps"),
    [
        ({}, 16, 1),
        ({"epochs": 3}, 16, 3),
        ({"responses_per_minibatch": 8}, 16, 2),
        ({"responses_per_minibatch": 5, "epochs": 2}, 16, 8),
        ({"responses_per_minibatch": 64}, 16, 1),
    ],
)
def test_optimizer_steps_an_iteration(options, responses, steps):
    assert Update(**options).steps(responses) == steps


@pytest.mark.parametrize(
    ("cls", "options"),
    [
        (Optimizer, {"lr": 0.0}),
        (Optimizer, {"schedule": "step"}),
        (Optimizer, {"lr": float("nan")}),
        (Update, {"epochs": 0}),
        (Update, {"responses_per_microbatch": 0}),
        (Evaluation, {"every": -1}),
        (Evaluation, {"evry": 1}),
    ],
)
def test_what_makes_no_sense_is_refused(cls, options):
    with pytest.raises(ValidationError):
        cls(**options)
