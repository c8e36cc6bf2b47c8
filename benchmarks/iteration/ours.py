"""This project's side: an experiment composed, loaded and trained as `tpg.train` does, an iteration at a time.

Run by `benchmarks.step`, not by hand.
"""

import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer

from benchmarks.common.protocol import Channel, Lap, Stopped, peak_memory, served, versions
from benchmarks.common.workload import Workload, work_done
from tpg.training.experiment import Experiment
from tpg.training.module import IterationCallback, TrajectoryPolicyGradient
from tpg.training.preparation import Prepared


def overrides(workload: Workload) -> list[str]:
    """The command line that `tpg.train` would be given, the user's own last."""
    return [
        "policy=huggingface",
        f"policy.path={workload.model}",
        "task=sort",
        "reward_model=[function]",
        "reward_model.function.function=benchmarks.common.reward:token_reward",
        "reward_workers=1",
        f"algorithm={workload.method}",
        "kl=none",
        f"rollout={workload.rollout}",
        f"rollout.prompts={len(workload.prompts)}",
        f"rollout.responses_per_prompt={workload.responses_per_prompt}",
        f"rollout.max_prompt_tokens={max(map(len, workload.prompts))}",
        f"rollout.max_response_tokens={workload.response_tokens}",
        *([f"update.responses_per_microbatch={rows}"] if (rows := workload.responses_per_microbatch) else []),
        f"optimizer.lr={workload.learning_rate}",
        f"trainer={workload.device}",
        f"trainer.precision={'bf16-mixed' if workload.precision == 'bf16' else '32-true'}",
        f"trainer.gradient_clip_val={'null' if workload.clip is None else workload.clip}",
        "evaluation.every=0",
        "logger=[csv]",
        "iterations=1000000",
        f"seed={workload.seed}",
        *workload.overrides,
    ]


def experiment_of(workload: Workload) -> Experiment:
    """The workload as an experiment, checked."""
    from hydra import compose, initialize_config_dir
    from omegaconf import OmegaConf

    from tpg.composition import to_experiment
    from tpg.jobs.configs import BOOKKEEPING, CONF

    with initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
        config = compose("train", overrides=overrides(workload))
    experiment = to_experiment(
        OmegaConf.create({key: value for key, value in config.items() if key not in BOOKKEEPING})
    )
    experiment.check()
    return experiment


def prepared_of(experiment: Experiment, workload: Workload) -> Prepared:
    """The policy and the prompts, which are given as tokens."""
    from tpg.randomness import Purpose, torch_seed
    from tpg.tasks.base import Example
    from tpg.tasks.rendering import Rendered
    from tpg.training.preparation import quiet_libraries
    from tpg.training.prompts import PromptStream

    quiet_libraries()
    policy = experiment.policy.load(torch_seed(experiment.seed, Purpose.INITIALIZATION))
    if workload.fixed_length:
        policy.model.generation_config.eos_token_id = []
        policy.tokenizer.eos_token = None
        assert not policy.end_ids
    examples = tuple(Example(str(i)) for i in range(len(workload.prompts)))
    stream = PromptStream(Rendered(examples, workload.prompts, 0), experiment.seed)
    return Prepared(policy, policy, stream, stream, ())


class OnDemand(IterationCallback):
    """Waits for a request before each iteration and tells of it afterwards."""

    def __init__(self, channel: Channel) -> None:
        self.channel = channel
        self.asked: dict[str, Any] = {}
        self.gradients: dict[str, torch.Tensor] = {}
        self.steps = 0

    def on_iteration_start(self, module: TrajectoryPolicyGradient, iteration: int) -> None:
        """Start the clock when asked."""
        self.asked = self.channel.request()
        self.steps = 0
        self.lap = Lap(_synchronize)

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        """Count it, and keep the gradients if they are asked for."""
        self.steps += 1
        if "keep" in self.asked:
            policy: Any = pl_module.policy
            self.gradients = {
                name: parameter.grad.detach().clone()
                for name, parameter in policy.model.named_parameters()
                if parameter.grad is not None
            }

    def on_iteration_end(self, module: TrajectoryPolicyGradient, iteration: int) -> None:
        """Tell."""
        assert module.experience is not None
        self.lap.add("generate", module.metrics["timing_s/rollout"])
        self.lap.add("reward", module.metrics.get("timing_s/reward", 0.0))
        seconds = self.lap.finish()
        trajectories = module.experience.trajectories
        rows = zip(trajectories.prompt_ids_BP, trajectories.prompt_mask_BP, strict=True)
        prompts = [ids[mask].tolist() for ids, mask in rows]
        rows = zip(trajectories.response_ids_BT, trajectories.response_mask_BT, strict=True)
        responses = [ids[mask].tolist() for ids, mask in rows]
        if "keep" in self.asked:
            kept = {"prompts": prompts, "responses": responses, "gradients": self.gradients}
            torch.save(kept, self.asked["keep"])
        lengths = [len(response) for response in responses]
        self.channel.answer(
            seconds=seconds,
            tokens=sum(lengths),
            memory_bytes=torch.cuda.max_memory_allocated() if torch.cuda.is_available() else peak_memory(),
            work=work_done(prompts, lengths, int(module.metrics["completions/updated"]), self.steps),
        )


def _synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def work(workload: Workload, channel: Channel) -> None:
    """Load, say so, and train as long as iterations are asked for."""
    from tpg.planning.floor import shape_of
    from tpg.training.run import collector_of

    torch.set_num_threads(workload.threads)
    experiment = experiment_of(workload)
    prepared = prepared_of(experiment, workload)
    with (
        tempfile.TemporaryDirectory() as folder,
        prepared.reward_model(experiment) as reward_model,
        experiment.rollout.build(prepared.policy) as engine,
    ):
        collector = collector_of(experiment, engine, prepared, reward_model, None, lambda: None)
        module = TrajectoryPolicyGradient(collector, experiment.optimizer, experiment.iterations)
        trainer = experiment.trainer.build(experiment.iterations, Path(folder), [OnDemand(channel)], [], [])
        channel.answer(
            versions=versions("tpg", "torch", "transformers", "lightning"),
            shape=vars(shape_of(prepared.policy.model)),
            note=engine.note,
            rollout=type(experiment.rollout).__name__,
        )
        with suppress(Stopped):
            trainer.fit(module)


if __name__ == "__main__":
    served(work)
