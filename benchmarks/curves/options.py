"""What `benchmarks.learning` can be told."""

from typing import Any, Literal

from pydantic import Field, field_validator

from tpg.component import component

TaskName = Literal["sort", "quickstart"]

SETTINGS: dict[str, list[str]] = {
    "sort": ["task.digits=4", "warm_start.steps=150"],
    "quickstart": [],
}
"""What differs from `experiment=<name>`: six digits stay below the target for hundreds of iterations."""
ITERATIONS = {"sort": 200, "quickstart": 60}
"""At most, unless `max_iterations` says otherwise."""


def _key(default: Any, description: str, **limits: Any) -> Any:
    made = {"default_factory": lambda: list(default)} if isinstance(default, list) else {"default": default}
    return Field(**made, description=description, **limits)


@component
class LearningOptions:
    """Seconds of training until the reward's running mean reaches a target, here and in TRL, from the same weights."""

    tasks: list[TaskName] = _key(["sort", "quickstart"], "what is learned", min_length=1)
    seeds: int = _key(3, "runs of each side, with seeds 0, 1, ...", ge=1)
    method: Literal["rloo", "grpo"] = _key("rloo", "of both sides")
    target: float = _key(0.9, "mean training reward that is to be reached", gt=0, le=1)
    window: int = _key(5, "iterations of the running mean", ge=1)
    max_iterations: int | None = _key(None, "of a run; null: 200 for sort, 60 for quickstart", ge=1)
    max_minutes: float = _key(10.0, "of a run's own time", gt=0)
    threads: int | None = _key(None, "of each side; null: the cores that this process may use", ge=1)
    precision: Literal["auto", "bf16", "float32"] = _key("auto", "of both sides; auto: as trainer.precision=auto")
    device: Literal["auto", "cpu", "gpu"] = _key("auto", "auto: a GPU where there is one")
    rollout: str = _key("native", "this project's engine, an option of conf/rollout")
    overrides: list[str] = _key([], "of this project's config, e.g. [update.responses_per_microbatch=32]")
    setting: list[str] = _key([], "of the experiment that both sides take, e.g. [optimizer.lr=1.0e-4]")
    trl: str | None = _key(None, "a python with TRL, or a folder to make its environment in; null: benchmarks/.trl")
    side: Literal["both", "ours"] = _key("both", "ours: without TRL")
    timeout_s: float = _key(3600.0, "an iteration may take", gt=0)
    run_dir: str | None = _key(None, "for learning.json and learning.png; null: outputs/benchmarks/learning-<time>")

    @field_validator("tasks")
    @classmethod
    def _each_once(cls, tasks: Any) -> Any:
        return list(dict.fromkeys(tasks))

    @property
    def sides(self) -> list[str]:
        """In the order of their turns."""
        return ["trl", "ours"] if self.side == "both" else ["ours"]

    def iterations(self, task: str) -> int:
        """At most."""
        return self.max_iterations or ITERATIONS[task]
