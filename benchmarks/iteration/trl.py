"""TRL's side: its GRPO or RLOO trainer, an iteration at a time. Run by `benchmarks.step` in TRL's own environment.

The trainers are TRL's, with two methods of a subclass around them: prompts come as tokens, and stages are timed.
"""

import tempfile
import time
from typing import Any

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer

from benchmarks.common.protocol import Channel, Lap, peak_memory, served, versions
from benchmarks.common.reward import token_reward
from benchmarks.common.workload import Workload, work_done


class Timed:
    """Goes before a trainer of TRL's."""

    lap: Lap
    given: "list[tuple[list[int], list[int]]] | None" = None
    """Prompts with the responses that are to be taken instead of generated ones."""

    def _tokenize_prompts(self, prompts: list[str]) -> Any:
        return [[int(token) for token in prompt.split()] for prompt in prompts], None, {}

    def _generate_single_turn(self, prompt_ids: list[list[int]], *args: Any, **kwargs: Any) -> Any:
        if self.given is not None:
            chosen = [self._taken(prompt) for prompt in prompt_ids]
            return (chosen, None) if isinstance(self, GRPOTrainer) else chosen
        start = time.perf_counter()
        result = super()._generate_single_turn(prompt_ids, *args, **kwargs)  # type: ignore[misc]
        self.lap.synchronize()
        self.lap.add("generate", time.perf_counter() - start)
        return result

    def _taken(self, prompt: list[int]) -> list[int]:
        assert self.given is not None
        place = next(i for i, (other, _) in enumerate(self.given) if other == prompt)
        return self.given.pop(place)[1]

    def _calculate_rewards(self, *args: Any, **kwargs: Any) -> Any:
        start = time.perf_counter()
        result = super()._calculate_rewards(*args, **kwargs)  # type: ignore[misc]
        self.lap.add("reward", time.perf_counter() - start)
        return result

    def _generate_and_score_completions(self, inputs: Any) -> Any:
        self.generated = super()._generate_and_score_completions(inputs)  # type: ignore[misc]
        return self.generated


class TimedGRPO(Timed, GRPOTrainer):
    """GRPO."""


class TimedRLOO(Timed, RLOOTrainer):
    """RLOO."""


class OnDemand(TrainerCallback):
    """Waits for a request before each optimizer step with its generation, and tells of it afterwards."""

    trainer: Any

    def __init__(self, channel: Channel) -> None:
        self.channel = channel
        self.asked: dict[str, Any] = {}

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Wait for the first."""
        self._wait()

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Keep the gradients if they are asked for."""
        if "keep" in self.asked:
            named = self.trainer.accelerator.unwrap_model(self.trainer.model).named_parameters()
            gradients = {name: value.grad.detach().clone() for name, value in named if value.grad is not None}
            torch.save({"gradients": gradients}, self.asked["keep"])

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Tell, and wait for the next."""
        seconds = self.trainer.lap.finish()
        batch = self.trainer.generated
        prompts = [
            ids[mask.bool()].tolist() for ids, mask in zip(batch["prompt_ids"], batch["prompt_mask"], strict=True)
        ]
        lengths = batch["completion_mask"].sum(-1).tolist()
        updated = int((batch["advantages"] != 0).sum())
        self.channel.answer(
            seconds=seconds,
            tokens=sum(lengths),
            memory_bytes=torch.cuda.max_memory_allocated() if torch.cuda.is_available() else peak_memory(),
            work=work_done(prompts, lengths, updated, 1),
        )
        self._wait()

    def _wait(self) -> None:
        self.asked = self.channel.request()
        if "given" in self.asked:
            given = torch.load(self.asked["given"], weights_only=True)
            self.trainer.given = list(zip(given["prompts"], given["responses"], strict=True))
        self.trainer.lap = Lap(_synchronize)


def _synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def reward(completion_ids: list[list[int]], **_: Any) -> list[float]:
    """The same as the other side's."""
    return [token_reward(ids) for ids in completion_ids]


def config_of(workload: Workload, folder: str) -> Any:
    """TRL's arguments for the workload."""
    rows = workload.responses_per_microbatch
    if rows is None or workload.responses % rows:
        raise ValueError(f"{workload.responses} responses are no multiple of micro-batches of {rows}")
    own: dict[str, Any] = {"loss_type": "grpo", "scale_rewards": "group"} if workload.method == "grpo" else {}
    return (GRPOConfig if workload.method == "grpo" else RLOOConfig)(
        output_dir=folder,
        per_device_train_batch_size=rows,
        gradient_accumulation_steps=workload.responses // rows,
        num_generations=workload.responses_per_prompt,
        max_completion_length=workload.response_tokens,
        generation_kwargs={"min_new_tokens": workload.response_tokens} if workload.fixed_length else None,
        temperature=1.0,
        beta=0.0,
        learning_rate=workload.learning_rate,
        lr_scheduler_type="constant",
        adam_beta2=0.99,
        weight_decay=0.0,
        max_grad_norm=workload.clip or 0.0,
        bf16=workload.precision == "bf16",
        use_cpu=workload.device == "cpu",
        gradient_checkpointing=False,
        max_steps=1_000_000,
        seed=workload.seed,
        report_to=[],
        save_strategy="no",
        disable_tqdm=True,
        **own,
    )


def work(workload: Workload, channel: Channel) -> None:
    """Load, say so, and train as long as iterations are asked for."""
    torch.set_num_threads(workload.threads)
    tokenizer = AutoTokenizer.from_pretrained(workload.model)
    model = AutoModelForCausalLM.from_pretrained(workload.model, dtype=torch.float32)
    prompts = Dataset.from_dict({"prompt": [" ".join(map(str, prompt)) for prompt in workload.prompts]})
    callback = OnDemand(channel)
    with tempfile.TemporaryDirectory() as folder:
        trainer = (TimedGRPO if workload.method == "grpo" else TimedRLOO)(
            model=model,
            reward_funcs=reward,
            args=config_of(workload, folder),
            train_dataset=prompts,
            processing_class=tokenizer,
            callbacks=[callback],
        )
        callback.trainer = trainer
        channel.answer(versions=versions("trl", "torch", "transformers", "accelerate"))
        trainer.train()


if __name__ == "__main__":
    served(work)
