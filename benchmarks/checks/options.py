"""What `benchmarks.gpu_checks` can be told."""

from typing import Any, Literal

from pydantic import Field, field_validator

from tpg.component import component
from tpg.spelling import did_you_mean

Model = Literal["auto", "smollm2", "tiny", "qwen3:tiny", "qwen3:0.1b", "qwen3:0.6b"]

PARTS = ("engines", "objectives", "runs", "strategies")
ENGINES = ("native", "transformers", "vllm")
USUAL = {
    "policy_gradient": ["algorithm=rloo"],
    "ppo_clip": ["algorithm=grpo"],
    "ppo_clip_higher": ["algorithm=dapo"],
    "sequence_clip": ["algorithm=rloo", "objective=sequence_clip"],
    "gspo": ["algorithm=gspo"],
    "luspo": ["algorithm=gspo", "objective=luspo"],
    "cispo": ["algorithm=cispo"],
    "sapo": ["algorithm=sapo"],
    "vespo": ["algorithm=vespo"],
    "p3o": ["algorithm=p3o"],
}
"""Each objective in the method that it is known from."""


def _key(default: Any, description: str, **limits: Any) -> Any:
    made = {"default_factory": lambda: list(default)} if isinstance(default, list) else {"default": default}
    return Field(**made, description=description, **limits)


@component
class CheckOptions:
    """Whether one GPU computes what the CPU does in float32: engines, objectives, a run that is continued."""

    parts: list[str] = _key(list(PARTS), "what is checked", min_length=1)
    engines: list[str] = _key(list(ENGINES), "options of conf/rollout; vllm is skipped where it is not installed")
    objectives: list[str] | None = _key(None, "options of conf/objective; null: all")
    model: Model = _key("auto", "auto: smollm2 where it is to hand, else qwen3:0.1b; on a CPU tiny")
    prompts: int = _key(4, "of the model", ge=1)
    responses_per_prompt: int = _key(4, "group size", ge=2)
    prompt_tokens: int = _key(24, "of the longest prompt, drawn at random", ge=2)
    response_tokens: int = _key(32, "at most", ge=2)
    iterations: int = _key(3, "of the run that is continued before its last", ge=2)
    minutes: float = _key(8.5, "after which nothing more is begun and what runs is ended", gt=0)
    device: Literal["auto", "cpu", "gpu"] = _key("auto", "auto: a GPU where there is one; cpu: CPU against CPU")
    seed: int = _key(0, "of weights, prompts and sampling", ge=0, lt=2**31)
    run_dir: str | None = _key(None, "where gpu_checks.json goes; null: outputs/benchmarks/gpu_checks-<time>")

    @field_validator("parts")
    @classmethod
    def _are_parts(cls, given: list[str]) -> list[str]:
        return _known(given, PARTS)

    @field_validator("engines")
    @classmethod
    def _are_engines(cls, given: list[str]) -> list[str]:
        return _known(given, ENGINES)

    @field_validator("objectives")
    @classmethod
    def _are_objectives(cls, given: list[str] | None) -> list[str] | None:
        return given if given is None else _known(given, tuple(USUAL))


def _known(given: list[str], names: tuple[str, ...]) -> list[str]:
    for name in given:
        if name not in names:
            raise ValueError(f"{name}: there are {', '.join(names)}{did_you_mean(name, list(names))}")
    return given
