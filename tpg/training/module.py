"""The LightningModule: an epoch is an iteration, and the loop is Lightning's."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any, ClassVar

import torch
from lightning.pytorch import Callback, LightningModule
from torch import Tensor

from tpg.policies.sharding import TENSOR, shard, shard_critic
from tpg.randomness import torch_seed
from tpg.training.experience import Collector, Experience
from tpg.training.faults.nonfinite import SkippedStep, finite, forget_gradients, scale_too_large
from tpg.training.faults.recovery import Recovery
from tpg.training.metrics import UpdateMetrics, iteration_metrics, joined
from tpg.training.minibatches import ExperienceLoader, MicroBatch
from tpg.training.optimizers import OptimizerOptions
from tpg.training.parallel.gradients import clip, level, total_norm


class TrajectoryPolicyGradient(LightningModule):
    """Response-level rewards to policy updates. (arXiv 2506.02553.)

    `train_dataloader` runs at the start of every epoch: it generates, scores and weighs. `training_step` is then the
    loss of a micro-batch, and clipping, accumulation, precision and checkpoints are Lightning's own.
    """

    def __init__(
        self,
        collector: Collector,
        optimizer: OptimizerOptions,
        total_steps: int,
    ) -> None:
        super().__init__()
        self.policy = collector.policy
        self.critic = collector.critic
        self.collector = collector
        self.optimizer_options = optimizer
        self.total_steps = total_steps
        self.method_state = collector.method.initial_state()
        self.num_tokens = 0
        self.experience: Experience | None = None
        self.update_metrics = UpdateMetrics()
        self.skipped_in_a_row = 0
        """Optimizer steps left out since the last one that was made: their loss or gradient was not finite."""
        self.recovery = Recovery(self)
        self.metrics: dict[str, float] = {}
        """What callbacks add to the iteration's row."""

    @property
    def iteration(self) -> int:
        """The iteration in hand, 1, 2, ...; 0 before the first."""
        return self.experience.iteration if self.experience else 0

    @property
    def critic_alone(self) -> bool:
        """Whether this iteration trains the critic only."""
        return self.critic is not None and self.iteration <= self.critic.warmup_iterations

    def configure_model(self) -> None:
        """Divide what has weights among devices, where the strategy is to."""
        mesh, reference = self.device_mesh, self.collector.reference
        if mesh is None:
            return
        shard(self.policy, mesh)
        if self.critic is not None:
            shard_critic(self.critic, mesh)
        if reference is not None and reference.frozen_copy is not None:
            shard(reference.frozen_copy, mesh)

    def configure_optimizers(self) -> Any:
        """The optimizer, and a schedule that moves with its steps."""
        others = [(self.critic, self.critic.lr)] if self.critic is not None else []
        optimizer, schedule = self.optimizer_options.build(self.policy, self.total_steps, others)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_fit_start(self) -> None:
        """Begin with an experience of this fit."""
        self.experience = None

    def on_train_start(self) -> None:
        """Take the learning rate from the schedule: a checkpoint's may belong to a run of fewer iterations."""
        schedule: Any = self.lr_schedulers()
        for group, base in zip(schedule.optimizer.param_groups, schedule.base_lrs, strict=True):
            group["lr"] = base * self.optimizer_options.factor(schedule.last_epoch, self.total_steps)

    def train_dataloader(self) -> ExperienceLoader:
        """The next iteration's experience."""
        # Lightning asks twice when it resumes, and counts the epoch of the checkpoint only after the first time.
        iteration = self.trainer.fit_loop.epoch_progress.current.processed + 1  # type: ignore[attr-defined]
        if self.experience is None or self.iteration != iteration:
            self._collect(iteration)
        assert self.experience is not None
        loader = self.collector.loader(self.experience)
        if any(callback.compares_micro_batches for callback in self._iteration_callbacks()):
            loader = replace(loader, similar_lengths=False)
        self.trainer.accumulate_grad_batches = loader.parts
        self._minibatches = loader.minibatches
        self.recovery.begin_step()
        self.update_metrics = UpdateMetrics()
        return loader

    def _collect(self, iteration: int) -> None:
        self.metrics = {}
        self.collector.gather()
        for callback in self._iteration_callbacks():
            callback.on_iteration_start(self, iteration)
        with self.trainer.precision_plugin.forward_context():
            self.experience = self.collector.collect(iteration, self.method_state)

    def training_step(self, batch: MicroBatch, index: int) -> Tensor:
        """The micro-batch's share of the minibatch's loss."""
        torch.manual_seed(torch_seed(self.collector.stream.seed, self.iteration, index))
        return self.recovery.loss(batch)

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        """Lightning's; in smaller parts where memory runs out."""
        self.recovery.backward(lambda: super(TrajectoryPolicyGradient, self).backward(loss, *args, **kwargs))

    def loss_of(self, batch: MicroBatch, *, count: bool = True) -> Tensor:
        """The micro-batch's loss; what it tells of itself is taken into the metrics if it is to `count`."""
        critic = self.critic
        if batch.trajectories is None and self.collector.gathered is not None:
            return self._empty_passes()
        if batch.trajectories is None:
            # Zero gradients, not missing ones: the optimizer steps as it would have with the rows that were skipped.
            moving = critic if critic is not None and self.critic_alone else self
            return sum(parameter.sum() * 0.0 for parameter in moving.parameters() if parameter.requires_grad)  # type: ignore[return-value]
        trajectories, method = batch.trajectories, self.collector.method
        with torch.set_grad_enabled(not self.critic_alone):
            statistics = self.policy.statistics(
                trajectories,
                self.collector.rollout.temperature,
                distribution=method.entropy_coefficient > 0,
                hidden=critic is not None and critic.reads_policy,
            )
            loss = method.loss(statistics, trajectories, batch.size, self.method_state)
        total = loss.value
        if critic is not None:
            value_loss = critic.loss(critic(trajectories, statistics.hidden), trajectories, batch.size.tokens)
            self.update_metrics.critic_loss += float(value_loss.detach()) if count else 0.0
            total = total + value_loss
        if count:
            self.update_metrics.add(loss.value, loss.watched_BT, trajectories.action_mask_BT)
            if trajectories.old_logprobs_BT is None:
                self.update_metrics.gap.add(statistics.logprobs, trajectories)
        # Lightning divides by the number of accumulated batches, its strategy by that of replicas; the aggregation has
        # already divided once and for all.
        return total * self.trainer.accumulate_grad_batches * self.collector.ranks.replicas

    def _empty_passes(self) -> Tensor:
        """A loss of zero: where layers are divided among processes, all pass through them as often."""
        assert self.experience is not None
        row = self.experience.trajectories.select(torch.tensor([0])).trimmed().to(self.policy.device)
        critic = self.critic
        with torch.set_grad_enabled(not self.critic_alone):
            hidden = critic is not None and critic.reads_policy
            statistics = self.policy.statistics(row, self.collector.rollout.temperature, hidden=hidden)
        total: Tensor = statistics.logprobs.sum() * 0.0
        return total if critic is None else total + critic(row, statistics.hidden).sum() * 0.0

    def transfer_batch_to_device(self, batch: MicroBatch, device: torch.device, dataloader_idx: int) -> MicroBatch:
        """The trajectories on the device."""
        if batch.trajectories is None:
            return batch
        return MicroBatch(batch.trajectories.to(device), batch.size)

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Note the gradients' norms, before they are clipped; make no step where they or the loss are not finite."""
        self.recovery.begin_step()
        if self.device_mesh is not None:
            level(self.parameters(), self.device_mesh[TENSOR])
        norms = [float(total_norm(group["params"])) for group in optimizer.param_groups]
        self.update_metrics.learning_rate = optimizer.param_groups[0]["lr"]
        loss = sum(self.collector.ranks.each_replica(lambda: self.update_metrics.step_loss))
        if not finite([loss, *norms]):
            self._skip_step(optimizer, norms, loss)
            return
        self.skipped_in_a_row = 0
        self.update_metrics.grad_norms.append(norms[0])
        self.update_metrics.critic_grad_norms += norms[1:]
        self.update_metrics.step_made()

    def _skip_step(self, optimizer: torch.optim.Optimizer, norms: list[float], loss: float) -> None:
        metrics = self.update_metrics
        place = len(metrics.grad_norms) + metrics.skipped_steps
        metrics.step_skipped()
        forget_gradients(optimizer)
        if scale_too_large(self.trainer.precision_plugin, loss):
            return
        self.skipped_in_a_row += 1
        step = SkippedStep(
            number=place + 1,
            first=metrics.skipped_steps == 1,
            in_a_row=self.skipped_in_a_row,
            loss=loss,
            norms=tuple(norms),
            responses=self._minibatches[place],
        )
        for callback in self._iteration_callbacks():
            callback.on_step_skipped(self, step)

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Policy and critic each by its own norm, so that a critic far off does not shorten the policy's step."""
        if gradient_clip_val is not None:
            for group in optimizer.param_groups:
                clip(group["params"], gradient_clip_val)

    def on_train_epoch_end(self) -> None:
        """Close the iteration: its row of metrics, and the state that the next one starts from."""
        assert self.experience is not None
        waiting, ranks = time.perf_counter(), self.collector.ranks
        ranks.together(self.collector.ahead.turn)
        waited = time.perf_counter() - waiting
        self.experience.seconds["rollout"] += waited
        self.update_metrics.started += waited
        self.update_metrics = joined(ranks.each_replica(lambda: self.update_metrics), self.update_metrics.started)
        self.method_state = self.experience.weighed.state
        self.collector.reward_model.learn(self.iteration, ranks.each)
        self.num_tokens += self.experience.generated_tokens
        self.metrics = {
            **iteration_metrics(self.experience, self.update_metrics.gap, self.collector.reward_model),
            **self.update_metrics.summary(),
            **({} if self.critic is None else {"critic/warmup": float(self.critic_alone)}),
            "num_tokens": self.num_tokens,
            **self.metrics,
        }
        seconds = self.experience.seconds
        total = sum(seconds.values()) + time.perf_counter() - self.update_metrics.started
        self.metrics |= {f"timing_s/{stage}": value for stage, value in seconds.items()}
        self.metrics["timing_s/update"] = total - sum(seconds.values())
        self.metrics["step_time"] = total
        self.metrics["perf/throughput"] = self.experience.generated_tokens / total
        for optimizer in self.trainer.optimizers:
            optimizer.zero_grad()  # else the next rollout would find them in memory
        for callback in self._iteration_callbacks():
            callback.on_iteration_end(self, self.iteration)
        for callback in self._iteration_callbacks():
            callback.on_iteration_recorded(self, self.iteration)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add what is carried from one iteration to the next beside the weights."""
        checkpoint["tpg"] = {
            "method_state": self.method_state,
            "num_tokens": self.num_tokens,
            "skipped_in_a_row": self.skipped_in_a_row,
            "memory": self.collector.memory.state(self.collector.update),
            "ahead": self.collector.ahead.state(self.collector.ranks),
            "rewards": self.collector.reward_model.state(),
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take it back."""
        self.method_state = checkpoint["tpg"]["method_state"]
        self.num_tokens = checkpoint["tpg"]["num_tokens"]
        self.skipped_in_a_row = checkpoint["tpg"].get("skipped_in_a_row", 0)
        if (bound := checkpoint["tpg"].get("memory")) is not None:
            self.collector.memory.restore(bound, self.collector.update)
        self.collector.reward_model.restore(checkpoint["tpg"].get("rewards", {}))
        self.collector.restore(checkpoint["tpg"].get("ahead"))

    def _iteration_callbacks(self) -> list[IterationCallback]:
        return [callback for callback in self.trainer.callbacks if isinstance(callback, IterationCallback)]  # type: ignore[attr-defined]


class IterationCallback(Callback):
    """A callback that is told of iterations. What it adds to `module.metrics` joins the iteration's row."""

    compares_micro_batches: ClassVar[bool] = False
    """Whether it needs micro-batches that are random parts of a minibatch, and not of similar lengths."""

    def on_iteration_start(self, module: TrajectoryPolicyGradient, iteration: int) -> None:
        """Before the iteration's rollout; the policy has been trained for `iteration - 1` iterations."""

    def on_iteration_end(self, module: TrajectoryPolicyGradient, iteration: int) -> None:
        """After its last update; in the order in which the callbacks were given, the user's before the recorders."""

    def on_step_skipped(self, module: TrajectoryPolicyGradient, step: SkippedStep) -> None:
        """After an optimizer step was left out because its loss or gradient is not finite; may raise to end the run."""

    def on_iteration_recorded(self, module: TrajectoryPolicyGradient, iteration: int) -> None:
        """After its row is written; may raise to end the run."""
