"""The options of a run that are no method: how the update is split, the optimizer, the hardware, what is kept."""

import math
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from tpg.component import component
from tpg.estimators.base import Estimator
from tpg.training.optimizers import Optimizer as Optimizer


@component
class Update:
    """How an iteration's responses are divided among optimizer steps and memory."""

    epochs: int = Field(default=1, ge=1)
    """Passes over the responses."""
    responses_per_minibatch: int | None = Field(default=None, ge=1)
    """Responses an optimizer step; None: all of them."""
    tokens_per_microbatch: int | None = Field(default=2048, ge=1)
    """Tokens that a forward and backward pass computes: each prompt once and its responses, or where the policy cannot
    share prompts a rectangle with its padding. Bounds memory and changes nothing else; None: no bound."""
    responses_per_microbatch: int | None = Field(default=None, ge=1)
    """Responses of a pass, beside that bound; None: no bound."""
    stop_after_nonfinite: int | None = Field(default=3, ge=1)
    """Optimizer steps in a row that may be skipped because their loss or gradient is not finite: the last of so many
    ends the run; None: none does."""

    @property
    def at_a_time(self) -> str:
        """The bounds on memory in words."""
        bounds = {"tokens": self.tokens_per_microbatch, "responses": self.responses_per_microbatch}
        return " and ".join(f"at most {bound} {name}" for name, bound in bounds.items() if bound) or "all"

    def steps(self, responses: int) -> int:
        """Optimizer steps an iteration."""
        return self.epochs * math.ceil(responses / (self.responses_per_minibatch or responses))


@component
class Evaluation:
    """How the policy is tried on held-out prompts."""

    every: int = Field(default=10, ge=0)
    """Iterations between two evaluations, the first before any update and one after the last; 0: never."""
    prompts: int | None = Field(default=None, ge=1)
    """At most so many held-out prompts; None: all."""
    responses_per_prompt: int = Field(default=1, ge=1)
    """k of pass@k and maj@k."""
    temperature: float | None = Field(default=None, ge=0)
    """None: as in training. 0: greedy."""
    success_reward: float = 1.0
    """A response whose reward reaches this counts as solved."""


@component
class Checkpointing:
    """When the state that a run continues from is written."""

    every: int = Field(default=10, ge=1)
    """Iterations between two checkpoints; the last iteration always leaves one."""
    keep_last: int = Field(default=1, ge=1)
    """Complete checkpoints that are kept, the newest; an older one is deleted when the next stands."""
    stop_within_s: float | None = Field(default=25.0, ge=0)
    """Seconds after SIGTERM at which an update that is still under way is left, to be done again from the last
    checkpoint; None: it is always completed, and saved."""
    recorded_responses: int = Field(default=64, ge=0)
    """How many responses, by whole prompts, leave a record of their tokens then and at the first iteration; 0: none."""
    requeue: bool = True
    """Whether a SLURM job that is stopped by SIGUSR1 (`--signal=USR1@120`) puts itself back into the queue."""


@component
class WarmStart:
    """Supervised steps on the task's demonstrations before the first iteration; 0 steps: none."""

    steps: int = Field(default=0, ge=0)
    examples_per_step: int = Field(default=64, ge=1)
    lr: float = Field(default=1e-3, gt=0)


@component
class Audit:
    """What `tpg.audit` tries a config on: small worlds where everything is counted, or the policy itself."""

    on: Literal["worlds", "policy"] = "worlds"
    estimators: str | list[str] | dict[str, Estimator] | None = None
    """Names of estimator options to compare, or all that the config admits, or estimators by names of one's own.

    None: the config's.
    """
    vary: Annotated[dict[str, Annotated[list[Any], Field(min_length=1)]], Field(max_length=1)] | None = None
    """One of the keys below and the values that it takes in turn."""
    responses_per_prompt: int | None = Field(default=None, ge=1)
    """In the worlds; None: the fewest that the estimator takes."""
    seed: int = Field(default=0, ge=0, lt=2**32)
    worlds: int = Field(default=20, ge=1)
    """How many are drawn."""
    vocabulary: int = Field(default=3, ge=2, le=8)
    horizon: int = Field(default=3, ge=1, le=8)
    """Most tokens of a response."""
    end: bool = False
    """Whether the last token of the vocabulary ends a response, so that lengths vary."""
    prompts: int = Field(default=1, ge=1)
    reward: Literal["dense", "key", "first", "last", "terminal_binary"] = "dense"
    """Which hidden tokens the reward comes from: all, those at one position, the first, the last; or 0/1 in the end."""
    success_rate: float = Field(default=1 / 3, gt=0, lt=1)
    """Probability of reward 1 where rewards are terminal and binary, as nearly as the responses allow."""
    discount: float = Field(default=1.0, gt=0, le=1)
    """The true objective's: token t's hidden reward counts `discount^(t-1)`."""
    reward_scales: list[Annotated[float, Field(gt=0)]] = Field(default=[1.0], min_length=1)
    """Of the prompts in turn."""
    off_policy: float = Field(default=0.0, ge=0)
    """Standard deviation of what has been added to the policy's logits since the rollout."""
    mismatch: float = Field(default=0.0, ge=0)
    """Standard deviation of what the engine's logits are off by."""
    reference_distance: float = Field(default=0.5, ge=0)
    critic_error: float = Field(default=0.5, ge=0)
    """Standard deviation of the critic's error at each prefix."""
    limit: int = Field(default=50_000, ge=1)
    """Batches that are enumerated at most; where there are more, `samples` are drawn."""
    samples: int = Field(default=20_000, ge=100)
    batches: int = Field(default=16, ge=4)
    """Independent batches that are generated on the policy."""

    @field_validator("estimators")
    @classmethod
    def _is_all_or_a_list(cls, estimators: Any) -> Any:
        if isinstance(estimators, str) and estimators != "all":
            raise ValueError(f"should be a list, e.g. [{estimators}], or all")
        return estimators
