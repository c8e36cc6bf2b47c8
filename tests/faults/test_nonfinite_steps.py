"""An optimizer step whose loss or gradient is not finite is not made, and is told and kept."""

import json
import math
from dataclasses import replace

import pytest
import torch
from iterations import Recorder, trained, weights
from rich.console import Console
from torch.testing import assert_close

from tpg.errors import UserError
from tpg.method import Method
from tpg.policies.critic import ValueHead
from tpg.training.faults.nonfinite import scale_too_large
from tpg.training.faults.nonfinite_record import NonfiniteSteps
from tpg.training.options import Optimizer, Update
from tpg.training.parallel.ranks import Ranks

DECAYING = Optimizer(lr=0.1, eps=0.1, weight_decay=0.5, schedule="linear")


class Poison(Recorder):
    """Spoils one gradient of some optimizer steps, counted from 1 over the whole run."""

    def __init__(self, steps, value=math.nan):
        super().__init__()
        self.steps = steps
        self.value = value
        self.made = 0
        self.weights = []
        self.moments = []

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        super().on_before_optimizer_step(trainer, pl_module, optimizer)
        self.made += 1
        self.weights.append(weights(pl_module))
        self.moments.append([state["exp_avg"].clone() for state in optimizer.state.values()])
        if self.made in self.steps:
            next(p for p in pl_module.parameters() if p.grad is not None).grad.view(-1)[0] = self.value

    def on_train_end(self, trainer, pl_module):
        self.weights.append(weights(pl_module))
        self.moments.append([state["exp_avg"].clone() for state in trainer.optimizers[0].state.values()])


def run(tmp_path, poison, limit=3, **options):
    console = Console(file=(tmp_path / "said").open("w"), width=1000)
    callbacks = [poison, NonfiniteSteps(tmp_path, limit, console)]
    try:
        return trained(tmp_path, optimizer=DECAYING, callbacks=callbacks, **options)
    finally:
        console.file.close()


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf], ids=str)
def test_neither_weights_nor_moments_move_and_the_schedule_goes_on(tmp_path, value):
    poison = Poison([2], value)
    module = run(tmp_path, poison, iterations=3)
    assert_close(poison.weights[2], poison.weights[1], atol=0, rtol=0)
    for before, after in zip(poison.moments[1], poison.moments[2], strict=True):
        assert_close(after, before, atol=0, rtol=0)
    assert not torch.equal(poison.weights[1], poison.weights[0])
    assert not torch.equal(poison.weights[3], poison.weights[2])
    steps = {float(state["step"]) for state in module.trainer.optimizers[0].state.values()}
    assert steps == {2.0}
    assert module.metrics["learning_rate"] == pytest.approx(0.1 * 0.98)
    assert module.skipped_in_a_row == 0


def test_it_is_counted_told_once_and_kept(tmp_path):
    # Two steps an iteration, of which the first is spoilt in iterations 1 and 2.
    poison = Poison([1, 3])
    update = Update(responses_per_minibatch=8, responses_per_microbatch=3)
    module = run(tmp_path, poison, iterations=2, update=update)
    assert module.metrics["update/skipped_steps"] == 1
    assert math.isfinite(module.metrics["loss"])
    assert math.isfinite(module.metrics["grad_norm"])
    said = (tmp_path / "said").read_text().splitlines()
    assert said == [
        "warning: iteration 1: the gradient's norm is nan: the optimizer step is skipped; its responses are in "
        f"{tmp_path}/nonfinite/iteration-000001.pt and .json beside it; counted in update/skipped_steps"
    ]
    kept = torch.load(tmp_path / "nonfinite" / "iteration-000002.pt", weights_only=True)
    assert kept["optimizer_step"] == 1
    assert math.isfinite(kept["loss"])
    assert math.isnan(kept["grad_norms"][0])
    assert int(kept["step_B"].sum()) == 8
    trajectories = module.experience.trajectories
    assert torch.equal(kept["response_ids_BT"], trajectories.response_ids_BT)
    assert torch.equal(kept["weights_BT"], trajectories.weights_BT)
    records = json.loads((tmp_path / "nonfinite" / "iteration-000002.json").read_text())
    assert [record["response"] for record in records] == [
        sample.response for sample in module.experience.scored.samples
    ]
    assert [record["in_step"] for record in records] == kept["step_B"].tolist()


def test_a_folder_s_brackets_are_said_as_they_are(tmp_path):
    folder = tmp_path / "a[bold]b"
    folder.mkdir()
    run(folder, Poison([1]), iterations=1)
    assert f"its responses are in {folder}/nonfinite/iteration-000001.pt" in (folder / "said").read_text()


def test_without_a_step_the_row_has_no_loss(tmp_path):
    module = run(tmp_path, Poison([1]), iterations=1)
    assert math.isnan(module.metrics["loss"])
    assert math.isnan(module.metrics["grad_norm"])
    assert module.metrics["update/skipped_steps"] == 1
    assert module.metrics["learning_rate"] == 0.1


def test_so_many_in_a_row_end_the_run_in_one_line(tmp_path):
    poison = Poison([2, 4, 5, 6])
    with pytest.raises(UserError) as told:
        run(tmp_path, poison, iterations=9)
    assert poison.made == 6
    assert str(told.value).startswith(
        "iteration 6: the gradient's norm is nan; 3 optimizer steps in a row were skipped, which is"
        f" update.stop_after_nonfinite=3; its responses are in {tmp_path}/nonfinite/iteration-000006.pt"
    )
    assert "optimizer.lr" in str(told.value)
    assert "\n" not in str(told.value)
    assert sorted(path.stem for path in (tmp_path / "nonfinite").glob("*.pt")) == [
        f"iteration-{iteration:06d}" for iteration in (2, 4, 5, 6)
    ]


def test_without_a_limit_the_run_goes_on(tmp_path):
    module = run(tmp_path, Poison(range(1, 6)), limit=None, iterations=5)
    assert module.skipped_in_a_row == 5


def test_a_loss_that_is_not_finite_though_its_gradient_is(tmp_path, monkeypatch):
    whole = Method.loss

    def lost(self, statistics, trajectories, size, state):
        loss = whole(self, statistics, trajectories, size, state)
        return replace(loss, value=loss.value + (math.inf if 3 in trajectories.row_B else 0.0))

    monkeypatch.setattr(Method, "loss", lost)
    poison = Poison([])
    module = run(tmp_path, poison, update=Update(responses_per_microbatch=4), iterations=2)
    skipped = [torch.equal(a, b) for a, b in zip(poison.weights, poison.weights[1:], strict=False)]
    assert skipped == [True, False]
    said = (tmp_path / "said").read_text()
    assert "the loss is inf" in said
    assert module.skipped_in_a_row == 0


def test_a_critic_that_is_not_finite_holds_the_policy_back_too(tmp_path):
    from tpg.estimators.gae import GAE

    class PoisonCritic(Poison):
        def on_before_optimizer_step(self, trainer, pl_module, optimizer):
            super().on_before_optimizer_step(trainer, pl_module, optimizer)
            next(p for p in optimizer.param_groups[1]["params"] if p.grad is not None).grad.fill_(math.nan)

    poison = PoisonCritic([])
    run(tmp_path, poison, estimator=GAE(), critic=ValueHead())
    assert_close(poison.weights[1], poison.weights[0], atol=0, rtol=0)


def test_what_one_process_finds_holds_on_every_one(tmp_path, monkeypatch):
    asked = []
    alone = Ranks.each_replica

    def with_another(self, work):
        own = alone(self, work)
        if isinstance(own[0], float):  # the losses of a step
            asked.append(math.isfinite(own[0]))
            own = [*own, math.nan if len(asked) == 1 else 0.0]
        return own

    monkeypatch.setattr(Ranks, "each_replica", with_another)
    poison = Poison([])
    run(tmp_path, poison, iterations=2)
    assert asked == [True, True]
    assert_close(poison.weights[1], poison.weights[0], atol=0, rtol=0)
    assert not torch.equal(poison.weights[2], poison.weights[1])


def test_a_scaler_that_has_scaled_too_far_ends_no_run():
    class Plugin:
        scaler = torch.amp.GradScaler("cpu", init_scale=4.0)

    assert scale_too_large(Plugin(), 0.5)
    assert not scale_too_large(Plugin(), math.nan)
    assert not scale_too_large(object(), 0.5)
    Plugin.scaler = torch.amp.GradScaler("cpu", init_scale=1.0)
    assert not scale_too_large(Plugin(), 0.5)


def test_the_count_of_steps_in_a_row_is_in_the_checkpoint(tmp_path):
    module = run(tmp_path, Poison([2, 3]), iterations=3)
    path = tmp_path / "last.ckpt"
    module.trainer.save_checkpoint(path)
    with pytest.raises(UserError, match=r"iteration 4: .*; 3 optimizer steps in a row"):
        run(tmp_path, Poison([1]), iterations=5, checkpoint=path)
