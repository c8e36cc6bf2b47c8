"""TRL's side of `benchmarks.learning`: its RLOO or GRPO trainer, an iteration when asked. Run in TRL's environment."""

import tempfile
from typing import Any

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback

from benchmarks.common.protocol import Channel, Lap, versions
from benchmarks.curves.protocol import served
from benchmarks.curves.task import REWARDS, LearningTask, told
from benchmarks.iteration.trl import TimedGRPO, TimedRLOO, config_of


class OnDemand(TrainerCallback):
    """Waits for a request before each optimizer step with its generation, and tells of it afterwards."""

    trainer: Any

    def __init__(self, channel: Channel, scores: "Scores") -> None:
        self.channel = channel
        self.scores = scores

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Wait for the first."""
        self._wait()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Tell, and wait for the next."""
        seconds = self.trainer.lap.finish()["iteration"]
        self.channel.answer(seconds=seconds, **told(self.scores.rewards, self.scores.lengths))
        self._wait()

    def _wait(self) -> None:
        self.channel.request()
        self.scores.clear()
        self.trainer.lap = Lap(_synchronize)


class Scores:
    """The reward that TRL calls, which remembers what it said in this iteration."""

    def __init__(self, task: LearningTask, tokenizer: Any, end_ids: set[int]) -> None:
        self.__name__ = task.name
        self.reward = REWARDS[task.name]
        self.tokenizer = tokenizer
        self.end_ids = end_ids
        self.clear()

    def clear(self) -> None:
        """A new iteration."""
        self.rewards: list[float] = []
        self.lengths: list[int] = []

    def __call__(self, completion_ids: list[list[int]], answer: list[str], **_: Any) -> list[float]:
        """A reward for each response."""
        found = []
        for ids, expected in zip(completion_ids, answer, strict=True):
            truncated = not ids or ids[-1] not in self.end_ids
            found.append(self.reward(self.tokenizer.decode(ids, skip_special_tokens=True), truncated, expected))
        self.rewards += found
        self.lengths += map(len, completion_ids)
        return found


def _synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def work(task: LearningTask, channel: Channel) -> None:
    """Load, say so, and train as long as iterations are asked for."""
    torch.set_num_threads(task.threads)
    tokenizer = AutoTokenizer.from_pretrained(task.model)
    model = AutoModelForCausalLM.from_pretrained(task.model, dtype=torch.float32)
    configured = model.generation_config.eos_token_id
    ends = {tokenizer.eos_token_id, *(configured if isinstance(configured, list) else [configured])}
    prompts = [" ".join(map(str, prompt)) for prompt in task.prompts]
    scores = Scores(task, tokenizer, ends)
    callback = OnDemand(channel, scores)
    with tempfile.TemporaryDirectory() as folder:
        arguments = config_of(task.workload, folder)
        arguments.adam_beta1, arguments.adam_beta2 = task.betas
        trainer = (TimedGRPO if task.method == "grpo" else TimedRLOO)(
            model=model,
            reward_funcs=scores,
            args=arguments,
            train_dataset=Dataset.from_dict({"prompt": prompts, "answer": list(task.answers)}),
            processing_class=tokenizer,
            callbacks=[callback],
        )
        callback.trainer = trainer
        channel.answer(versions=versions("trl", "torch", "transformers", "accelerate"), note=None)
        trainer.train()


if __name__ == "__main__":
    served(work)
