"""This project's side of `benchmarks.learning`: iterations as `tpg.train` makes them, one when asked.

Run by `benchmarks.learning`, not by hand.
"""

import tempfile
from contextlib import suppress
from pathlib import Path

import torch

from benchmarks.common.protocol import Channel, Lap, Stopped, versions
from benchmarks.curves.protocol import served
from benchmarks.curves.task import LearningTask, told
from tpg.training.experiment import Experiment
from tpg.training.module import IterationCallback, TrajectoryPolicyGradient
from tpg.training.preparation import Prepared


def overrides(task: LearningTask) -> list[str]:
    """The command line that `tpg.train` would be given, the user's own last."""
    return [
        f"experiment={task.name}",
        "policy=huggingface",
        f"policy.path={task.model}",
        "warm_start.steps=0",  # the weights have had it
        "reward_model=[function]",
        *(["~reward_model.last_number"] if task.name == "quickstart" else []),  # the experiment says something of it
        f"+reward_model.function.function=benchmarks.curves.task:{task.name}",
        "reward_workers=1",
        f"algorithm={task.method}",
        "kl=none",
        f"rollout={task.rollout}",
        f"rollout.prompts={task.prompts_per_iteration}",
        f"rollout.responses_per_prompt={task.responses_per_prompt}",
        f"rollout.max_response_tokens={task.response_tokens}",
        f"optimizer.lr={task.learning_rate}",
        f"optimizer.betas=[{task.betas[0]},{task.betas[1]}]",
        "optimizer.schedule=constant",
        f"trainer={task.device}",
        f"trainer.precision={'bf16-mixed' if task.precision == 'bf16' else '32-true'}",
        f"trainer.gradient_clip_val={'null' if task.clip is None else task.clip}",
        "evaluation.every=0",
        "logger=[csv]",
        "iterations=1000000",
        f"seed={task.seed}",
        *task.overrides,
    ]


def composed(given: list[str]) -> Experiment:
    """The experiment of a command line, checked for types."""
    from hydra import compose, initialize_config_dir
    from omegaconf import OmegaConf

    from tpg.composition import to_experiment
    from tpg.jobs.configs import BOOKKEEPING, CONF

    with initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
        config = compose("train", overrides=given)
    return to_experiment(OmegaConf.create({key: value for key, value in config.items() if key not in BOOKKEEPING}))


def prepared_of(experiment: Experiment, task: LearningTask) -> Prepared:
    """The policy, and the prompts as the tokens that they are given as."""
    from tpg.randomness import Purpose, torch_seed
    from tpg.tasks.base import Example
    from tpg.tasks.rendering import Rendered
    from tpg.training.preparation import quiet_libraries
    from tpg.training.prompts import PromptStream

    quiet_libraries()
    policy = experiment.policy.load(torch_seed(experiment.seed, Purpose.INITIALIZATION))
    examples = tuple(Example(str(row), answer) for row, answer in enumerate(task.answers))
    stream = PromptStream(Rendered(examples, task.prompts, 0), experiment.seed)
    return Prepared(policy, policy, stream, stream, ())


class OnDemand(IterationCallback):
    """Waits for a request before each iteration, and tells of it afterwards."""

    def __init__(self, channel: Channel) -> None:
        self.channel = channel

    def on_iteration_start(self, module: TrajectoryPolicyGradient, iteration: int) -> None:
        """Start the clock when asked."""
        self.channel.request()
        self.lap = Lap(_synchronize)

    def on_iteration_end(self, module: TrajectoryPolicyGradient, iteration: int) -> None:
        """Stop it, and tell."""
        seconds = self.lap.finish()["iteration"]
        assert module.experience is not None
        trajectories = module.experience.trajectories
        assert trajectories.rewards_B is not None
        lengths = trajectories.response_mask_BT.sum(1).tolist()
        self.channel.answer(seconds=seconds, **told(trajectories.rewards_B.tolist(), lengths))


def _synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def work(task: LearningTask, channel: Channel) -> None:
    """Load, say so, and train as long as iterations are asked for."""
    from tpg.training.run import collector_of

    torch.set_num_threads(task.threads)
    experiment = composed(overrides(task))
    experiment.check()
    prepared = prepared_of(experiment, task)
    with (
        tempfile.TemporaryDirectory() as folder,
        prepared.reward_model(experiment) as reward_model,
        experiment.rollout.build(prepared.policy) as engine,
    ):
        collector = collector_of(experiment, engine, prepared, reward_model, None, lambda: None)
        module = TrajectoryPolicyGradient(collector, experiment.optimizer, experiment.iterations)
        trainer = experiment.trainer.build(experiment.iterations, Path(folder), [OnDemand(channel)], [], [])
        channel.answer(versions=versions("tpg", "torch", "transformers", "lightning"), note=engine.note)
        with collector, suppress(Stopped):
            trainer.fit(module)


if __name__ == "__main__":
    served(work)
