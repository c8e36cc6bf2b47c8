"""What `benchmarks.step` can be told."""

from dataclasses import replace
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, ValidationInfo, field_validator

from benchmarks.common.checks import Device
from tpg.component import component
from tpg.errors import UserError

Sweep = Literal["lengths", "groups", "prompts", "model"]

SWEEPS: dict[str, tuple[str, list[Any]]] = {
    "lengths": ("response_tokens", [32, 64, 128, 256, 512]),
    "groups": ("responses_per_prompt", [2, 4, 8, 16, 32]),
    "prompts": ("prompt_tokens", [64, 128, 256, 512, 1024]),
    "model": ("model", ["qwen3:0.1b", "smollm2", "qwen3:0.6b"]),
}
"""The key that each sweep varies, and the values it takes."""


def _key(default: Any, description: str, **limits: Any) -> Any:
    made = {"default_factory": lambda: list(default)} if isinstance(default, list) else {"default": default}
    return Field(**made, description=description, **limits)


@component
class StepOptions:
    """The same iteration here and in TRL, in turns: seconds, tokens/s, memory, and the share of what is possible."""

    prompts: int = _key(8, "an iteration", ge=1)
    responses_per_prompt: int = _key(8, "group size", ge=2)
    prompt_tokens: int = _key(64, "of every prompt, drawn at random", ge=1)
    response_tokens: int = _key(64, "of every response: none ends before", ge=2)
    model: str = _key("smollm2", "or tiny, qwen3:0.1b, qwen3:0.6b, qwen3:1.7b (random weights), a folder, a hub id")
    methods: list[Literal["grpo", "rloo"]] = _key(["grpo", "rloo"], "of both sides; the first is swept", min_length=1)
    repeats: int = _key(3, "iterations that are counted, after one that is not", ge=1)
    threads: int | None = _key(None, "of each side; null: the cores that this process may use", ge=1)
    precision: Literal["auto", "bf16", "float32"] = _key("auto", "auto: bf16 where its matrix product is faster here")
    device: Device = _key("auto", "auto: a GPU where there is one")
    rollout: str = _key("native", "this project's engine, an option of conf/rollout")
    overrides: list[str] = _key([], "of this project's config, e.g. [update.tokens_per_microbatch=1024]")
    microbatch: int | None = _key(None, "responses in memory at once, here; null: as conf/update says", ge=1)
    trl_microbatch: int | Literal["auto"] = _key(
        16, "TRL's per_device_train_batch_size; auto: the fastest of 8, 16, 32"
    )
    trl: str | None = _key(None, "a python with TRL, or a folder to make its environment in; null: benchmarks/.trl")
    side: Literal["both", "ours"] = _key("both", "ours: without TRL")
    sweep: list[Sweep] = _key([], "one or a list of lengths, groups, prompts, model")
    sweep_values: list[Any] | None = _key(None, "for the one sweep that is named, in place of its own", min_length=1)
    gradients: bool = _key(True, "compare both sides' gradients of the same responses, tiny model, float32")
    seed: int = _key(0, "of prompts and sampling", ge=0, lt=2**31)
    timeout_s: Annotated[float, Field(gt=0)] = _key(3600.0, "an iteration may take")
    run_dir: str | None = _key(None, "where step.json and step.png go; null: outputs/benchmarks/step-<time>")

    @field_validator("sweep", mode="before")
    @classmethod
    def _listed(cls, sweep: Any) -> Any:
        if isinstance(sweep, str):
            return [] if sweep == "none" else [sweep]
        return sweep

    @field_validator("trl_microbatch")
    @classmethod
    def _positive(cls, rows: Any) -> Any:
        if isinstance(rows, int) and rows < 1:
            raise ValueError("should be auto or at least 1")
        return rows

    @field_validator("sweep_values")
    @classmethod
    def _of_one_sweep(cls, values: Any, info: ValidationInfo) -> Any:
        if values is not None and len(info.data.get("sweep", [])) != 1:
            raise ValueError("name the one sweep that they are for, e.g. sweep=lengths")
        return values

    def points(self, sweep: Sweep) -> tuple[str, list[Any]]:
        """The key that a sweep varies, and its values."""
        key, values = SWEEPS[sweep]
        return key, self.sweep_values or values

    @property
    def sides(self) -> list[str]:
        """In the order of their turns."""
        return ["trl", "ours"] if self.side == "both" else ["ours"]


def check_sweeps(options: StepOptions) -> None:
    """Raise `UserError` for a value that a sweep cannot take."""
    for sweep in options.sweep:
        key, values = options.points(sweep)
        for value in values:
            try:
                replace(options, **{key: value})
            except ValidationError as error:
                raise UserError(f"sweep_values: {key}={value}: {error.errors()[0]['msg']}") from None
