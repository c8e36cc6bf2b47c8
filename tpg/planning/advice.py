"""What to change where a run does not fit: each single change is estimated, not guessed."""

from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from typing import Any

from tpg.planning.layout import Layout
from tpg.planning.memory import Memory, memory_of
from tpg.planning.outline import outline_of
from tpg.planning.setting import Setting
from tpg.policies.base import LoRA
from tpg.training.experiment import Experiment
from tpg.training.optimizers import AdamW8bit

FEWEST_TOKENS = 256
"""Of a micro-batch that is advised."""
FEWEST_ROWS = 8
"""Decoded at once that are advised."""
DEVICES = (2, 4, 8)


@dataclass(frozen=True)
class Advice:
    """Overrides to paste, and what memory they leave needed."""

    overrides: str
    memory: Memory

    @property
    def fits(self) -> bool:
        """Whether they suffice."""
        return self.memory.fits


def advice_for(setting: Setting, trainers: Collection[str] = ()) -> list[Advice]:
    """Single changes that fit, least memory first; where none does, those that help most and then all together.

    `trainers` are the options of the group, of which only those that there are will be advised.
    """
    now = memory_of(setting).peak
    tried = [(Advice(text, memory_of(changed)), changed) for text, changed in _changes(setting, trainers)]
    helpful = [advice for advice, _ in tried if advice.memory.peak < 0.99 * now]
    helpful.sort(key=lambda advice: advice.memory.peak)
    fitting = [advice for advice in helpful if advice.fits]
    return fitting or [*helpful[:4], *_together(setting, trainers)]


def _together(setting: Setting, trainers: Collection[str]) -> list[Advice]:
    """The change that helps most, then the one that helps most after it, until the run fits or nothing helps."""
    given: list[str] = []
    memory = memory_of(setting)
    while not memory.fits:
        taken = {text.split("=")[0] for text in given}
        found = [
            (memory_of(changed), text, changed)
            for text, changed in _changes(setting, trainers)
            if text.split("=")[0] not in taken
        ]
        best = min(found, key=lambda one: one[0].peak, default=None)
        if best is None or best[0].peak > 0.99 * memory.peak:
            break
        memory, text, setting = best
        given.append(text)
    return [Advice(" ".join(given), memory)] if len(given) > 1 else []


def _changes(setting: Setting, trainers: Collection[str]) -> Iterator[tuple[str, Setting]]:
    """Each change as an override, and the setting with it."""
    experiment = setting.experiment
    policy = experiment.policy
    rollout: Any = experiment.rollout  # whose fields are of its class
    for text, made in _of_weights(setting):
        yield text, setting.with_experiment(made, outline_of(made, made.trainer.precision))
    if not policy.gradient_checkpointing:
        checkpointed = replace(experiment, policy=replace(policy, gradient_checkpointing=True))
        yield "policy.gradient_checkpointing=true", setting.with_experiment(checkpointed, setting.outline)
    for tokens in _halved(setting.tokens(setting.microbatch_responses), FEWEST_TOKENS):
        update = replace(experiment.update, tokens_per_microbatch=tokens)
        yield f"update.tokens_per_microbatch={tokens}", _with(setting, update=update)
    for rows in _halved(setting.rows, FEWEST_ROWS):
        if hasattr(rollout, "batch_responses") and setting.vllm is None:
            yield f"rollout.batch_responses={rows}", _with(setting, rollout=replace(rollout, batch_responses=rows))
    if setting.device == "cuda" and not isinstance(experiment.optimizer, AdamW8bit):
        optimizer = AdamW8bit(lr=experiment.optimizer.lr)
        yield "optimizer=adamw_8bit", _with(setting, optimizer=optimizer)
    if setting.copies_weights and rollout.lag == 0:
        yield "rollout.dtype=policy", _with(setting, rollout=replace(rollout, dtype="policy"))
    vllm = setting.vllm
    if vllm is not None and setting.device == "cuda":
        if not vllm.sleep:
            yield "rollout.sleep=true", _with(setting, rollout=replace(vllm, sleep=True))
        if vllm.gpu_memory_share > 0.2:
            yield "rollout.gpu_memory_share=0.2", _with(setting, rollout=replace(vllm, gpu_memory_share=0.2))
    if setting.layout.devices == 1:
        yield from _on_more_devices(setting, trainers)


def _of_weights(setting: Setting) -> Iterator[tuple[str, Experiment]]:
    """Changes for which the models must be outlined anew."""
    experiment = replace(setting.experiment, trainer=replace(setting.experiment.trainer, precision=setting.precision))
    policy, trainer = experiment.policy, experiment.trainer
    if policy.lora is None:
        yield "policy.lora={rank:16}", replace(experiment, policy=replace(policy, lora=LoRA(rank=16)))
    if setting.held > 2:
        short = replace(trainer, precision="bf16-true")
        yield "trainer.precision=bf16-true", replace(experiment, trainer=short)


def _on_more_devices(setting: Setting, trainers: Collection[str]) -> Iterator[tuple[str, Setting]]:
    if setting.device == "cuda":
        for count in DEVICES:
            if "fsdp" in trainers:
                yield f"trainer=fsdp trainer.devices={count}", replace(setting, layout=Layout(count, 1, sharded=True))
            if "tensor_parallel" in trainers:
                whole = Layout(1, count)
                yield f"trainer=tensor_parallel trainer.devices={count}", replace(setting, layout=whole)


def _halved(size: int, least: int) -> Iterator[int]:
    """The powers of two below a size, down to the least."""
    power = 1 << max(0, (size - 1).bit_length() - 1)
    while power >= least and power < size:
        yield power
        power //= 2


def _with(setting: Setting, **parts: Any) -> Setting:
    """The setting with other parts of the experiment, none of which changes the models."""
    return setting.with_experiment(replace(setting.experiment, **parts), setting.outline)
