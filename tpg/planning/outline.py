"""The models of an experiment on the meta device: every shape, no weight."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from tpg.errors import UserError, one_line
from tpg.policies.attention import why_not
from tpg.policies.base import Policy, PolicyOptions
from tpg.rewards.learned.options import Learned
from tpg.training.experiment import Experiment
from tpg.training.hardware import SMALL, PrecisionName, fastest_precision, layer_shapes


@dataclass(frozen=True, eq=False)
class Outline:
    """What a run will hold of models; parameters have the types that they will be trained in."""

    policy: Any
    """The model, in its adapters where it has some."""
    reference: Any
    """A copy to measure a divergence from; None where there is none, or where adapters are switched off for it."""
    critic: nn.Module | None
    reward_models: Mapping[str, Sequence[nn.Module]] = field(default_factory=dict)
    """The learned ones, by term."""

    @property
    def trainable(self) -> list[nn.Parameter]:
        """What the optimizer moves."""
        parts = [self.policy] if self.critic is None else [self.policy, self.critic]
        return [parameter for part in parts for parameter in part.parameters() if parameter.requires_grad]

    @property
    def own_critic(self) -> bool:
        """Whether the critic has a model of its own."""
        return self.critic is not None and sum(1 for _ in self.critic.parameters()) > 2


def policy_outline(options: PolicyOptions) -> Any:
    """The policy's model on the meta device. Raises `UserError` where its shapes are not to be had."""
    try:
        return options.outline()
    except (RuntimeError, NotImplementedError) as error:
        raise UserError(
            f"policy: {type(options).__name__} cannot be made without its weights ({one_line(error)});"
            " give it a method outlined_model that builds the model from its config"
        ) from error


def outline_of(experiment: Experiment, precision: PrecisionName) -> Outline:
    """What an experiment holds when it is trained in this precision."""
    policy = policy_outline(experiment.policy)
    adapted = experiment.policy.lora is not None
    # The reference is copied before Lightning turns the weights into the type of bf16-true.
    reference = policy_outline(experiment.policy) if experiment.kl.needs_reference and not adapted else None
    critic = None
    if experiment.estimator.needs_critic:
        with torch.device("meta"):
            critic = experiment.critic.build(experiment.critic.outlined_source(Policy(policy, None), experiment.policy))
    if precision == "bf16-true":
        for module in (policy, critic):
            if module is not None:
                module.to(torch.bfloat16)
    learned = {name: term for name, term in experiment.reward_model.items() if isinstance(term, Learned)}
    reward_models = {name: term.outlined(f"reward_model.{name}") for name, term in learned.items()}
    return Outline(policy, reference, critic, reward_models)


def precision_of(experiment: Experiment, model: nn.Module, device: str, *, here: bool) -> PrecisionName:
    """What the run will compute in; where that is left to a measurement on another machine, what is likely."""
    if experiment.trainer.precision != "auto":
        return experiment.trainer.precision
    if here:
        return fastest_precision(model, device).name
    large = max((rows * columns for rows, columns in layer_shapes(model)), default=0) >= SMALL
    return "bf16-mixed" if large and device == "cuda" else "32-true"


def shares_prompts(model: Any, tokens: int) -> bool:
    """Whether passes over contexts of so many tokens compute a prompt once for all its responses."""
    return why_not(model, tokens) is None


def bytes_of(module: nn.Module | None) -> int:
    """Of all parameters, a shared one counted once."""
    return 0 if module is None else sum(p.numel() * p.element_size() for p in module.parameters())
