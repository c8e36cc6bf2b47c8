"""What `benchmarks.gpu` can be told."""

from typing import Any, Literal

from pydantic import Field, field_validator

from tpg.component import component

Size = Literal["tiny", "0.1b", "0.6b", "1.7b"]


def _key(default: Any, description: str, **limits: Any) -> Any:
    made = {"default_factory": lambda: list(default)} if isinstance(default, list) else {"default": default}
    return Field(**made, description=description, **limits)


@component
class GpuOptions:
    """An iteration on one GPU for Qwen3 shapes with random weights, beside what the GPU could do; and checks."""

    models: list[Size] = _key(["0.1b", "0.6b", "1.7b"], "smallest first", min_length=1)
    engines: list[str] = _key(["native", "transformers"], "options of conf/rollout; the first one's run trains")
    prompts: int = _key(32, "an iteration", ge=1)
    responses_per_prompt: int = _key(8, "group size", ge=2)
    prompt_tokens: int = _key(128, "of every prompt, drawn at random", ge=1)
    response_tokens: int = _key(512, "of every response: none ends before", ge=2)
    precision: Literal["bf16-mixed", "32-true"] = _key("bf16-mixed", "of rollout and update")
    minutes: float = _key(8.5, "after which nothing more is begun and what runs is ended", gt=0)
    checks: bool = _key(True, "also compare GPU and CPU, layouts, and a resumed run, on a tiny model")
    device: Literal["auto", "cpu", "gpu"] = _key("auto", "auto: a GPU where there is one")
    tiny: bool = _key(False, "a tiny model and few tokens, to try the command")
    seed: int = _key(0, "of weights, prompts and sampling", ge=0, lt=2**31)
    run_dir: str | None = _key(None, "where gpu.json goes; null: outputs/benchmarks/gpu-<time>")

    @field_validator("engines")
    @classmethod
    def _some(cls, engines: list[str]) -> list[str]:
        if not engines:
            raise ValueError("name at least one")
        return engines
