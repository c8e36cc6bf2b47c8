"""The sizes of a run on one device."""

import math
from dataclasses import dataclass, replace

from tpg.planning.layout import Layout
from tpg.planning.options import Plan
from tpg.planning.outline import Outline, shares_prompts
from tpg.rollouts.native.engine import Native
from tpg.rollouts.vllm.options import VLLM
from tpg.training.experiment import Experiment
from tpg.training.hardware import PrecisionName

BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


@dataclass(frozen=True, eq=False)
class Setting:
    """An experiment on so many devices of a kind, in a precision that is chosen."""

    experiment: Experiment
    outline: Outline
    layout: Layout
    device: str
    """cpu, cuda or mps."""
    precision: PrecisionName
    plan: Plan
    device_memory: float
    """Bytes of one device."""

    @property
    def prompt_tokens(self) -> int:
        """Of every prompt."""
        return self.plan.prompt_tokens or self.experiment.rollout.max_prompt_tokens

    @property
    def response_tokens(self) -> int:
        """Of every response."""
        return self.plan.response_tokens or self.experiment.rollout.max_response_tokens

    @property
    def held(self) -> int:
        """Bytes of a weight that is trained."""
        return next(self.outline.policy.parameters()).element_size()

    @property
    def mixed(self) -> bool:
        """Whether products are in a shorter type than weights are held in."""
        return self.precision.endswith("-mixed") and self.held > 2

    @property
    def computed(self) -> int:
        """Bytes of a number that products read."""
        return 2 if self.mixed else self.held

    @property
    def decodes_itself(self) -> bool:
        """Whether our own loop decodes: it knows this policy."""
        tokens = self.prompt_tokens + self.response_tokens
        return isinstance(self.experiment.rollout, Native) and shares_prompts(self.outline.policy, tokens)

    @property
    def decoded(self) -> int:
        """Bytes of a weight that decodes."""
        wanted = getattr(self.experiment.rollout, "dtype", "policy")
        if wanted in BYTES:
            return BYTES[wanted]
        return self.computed if wanted == "auto" else self.held

    @property
    def copies_weights(self) -> bool:
        """Whether our own loop decodes with a copy of the weights."""
        return self.decodes_itself and (self.decoded != self.held or self.experiment.rollout.lag > 0)

    @property
    def prompts(self) -> int:
        """Of an iteration's update, on one device."""
        return math.ceil(self.experiment.rollout.prompts / self.layout.data_parallel)

    @property
    def responses(self) -> int:
        """Of an iteration's update, on one device."""
        return self.prompts * self.experiment.rollout.responses_per_prompt

    @property
    def generated(self) -> int:
        """Responses of an iteration that one device generates; all devices share them."""
        rollout = self.experiment.rollout
        return math.ceil(rollout.prompts * rollout.responses_per_prompt / self.layout.devices)

    @property
    def rows(self) -> int:
        """Responses decoded at once; as many as may be where evaluation or continuations could fill the engine."""
        rollout, evaluation = self.experiment.rollout, self.experiment.evaluation
        most = int(getattr(rollout, "batch_responses", self.generated))
        if self.experiment.estimator.continues or (evaluation.every and evaluation.prompts is None):
            return most
        tried = (evaluation.prompts or 0) * evaluation.responses_per_prompt if evaluation.every else 0
        return min(most, max(self.generated, math.ceil(tried / self.layout.devices)))

    @property
    def rows_share(self) -> int:
        """Responses that look at one prompt."""
        return min(self.rows, self.experiment.rollout.responses_per_prompt)

    @property
    def rectangles(self) -> bool:
        """Whether the update pads: every response beside its own prompt."""
        tokens = self.prompt_tokens + self.response_tokens
        return self.outline.own_critic or not shares_prompts(self.outline.policy, tokens)

    @property
    def minibatch_responses(self) -> int:
        """Responses of an optimizer step, on one device."""
        given = self.experiment.update.responses_per_minibatch
        return min(self.responses, math.ceil(given / self.layout.data_parallel) if given else self.responses)

    def tokens(self, responses: int) -> int:
        """That a pass over so many responses computes."""
        group = self.experiment.rollout.responses_per_prompt
        prompts = responses if self.rectangles else math.ceil(responses / group)
        return prompts * self.prompt_tokens + responses * self.response_tokens

    @property
    def microbatch_responses(self) -> int:
        """Responses in memory at once, at least one; all of a prompt's where the objective compares them."""
        update, group = self.experiment.update, self.experiment.rollout.responses_per_prompt
        most = min(self.minibatch_responses, update.responses_per_microbatch or self.minibatch_responses)
        if update.tokens_per_microbatch is not None:
            while most > 1 and self.tokens(most) > update.tokens_per_microbatch:
                most -= 1
        return max(most, group) if self.experiment.objective.needs_groups else most

    @property
    def optimizer_steps(self) -> int:
        """An iteration."""
        return self.experiment.update.steps(
            self.experiment.rollout.prompts * self.experiment.rollout.responses_per_prompt
        )

    @property
    def vllm(self) -> VLLM | None:
        """VLLM in this process, where it generates."""
        rollout = self.experiment.rollout
        return rollout if isinstance(rollout, VLLM) and rollout.server is None else None

    def with_experiment(self, experiment: Experiment, outline: Outline) -> "Setting":
        """The same with another experiment."""
        return replace(self, experiment=experiment, outline=outline)
