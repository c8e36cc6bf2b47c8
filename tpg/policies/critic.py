"""Critics: what the reward is expected to be, before every response token."""

import contextlib
import copy
from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn

from tpg.component import component
from tpg.errors import UserError
from tpg.policies.attention import base_model
from tpg.policies.base import Policy, PolicyOptions, dropout_off
from tpg.policies.huggingface import HuggingFace
from tpg.policies.logprobs import response_hidden_states
from tpg.trajectories import Trajectories


@component
class CriticOptions:
    """Which critic there is, and how it is trained."""

    def check(self, policy: PolicyOptions) -> None:
        """Raise `UserError` if what the critic is loaded from is missing. Loads nothing."""

    def source(self, policy: Policy, options: PolicyOptions, seed: int) -> Policy:
        """The model that the critic starts from; raises `UserError` when it is not to be had."""
        return policy

    def outlined_source(self, policy: Policy, options: PolicyOptions) -> Policy:
        """The same on the meta device, for a policy that is on it."""
        return policy

    def build(self, source: Policy) -> "Critic | None":
        """The critic, or None where there is none."""
        return None


@component
class NoCritic(CriticOptions):
    """No critic."""


@component
class TrainedCritic(CriticOptions, ABC):
    """A critic with an optimizer group of its own, on the same schedule as the policy's."""

    lr: float = Field(default=1e-5, gt=0)
    value_clip: float | None = Field(default=None, gt=0)
    """How far a value may leave the one before the update before its error stops falling; None: as far as it likes."""
    warmup_iterations: int = Field(default=0, ge=0)
    """First iterations in which the critic alone is trained."""

    @abstractmethod
    def build(self, source: Policy) -> "Critic":
        """The critic."""


@component
class ValueHead(TrainedCritic):
    """A linear head on the policy's last hidden states: no forward pass of its own."""

    lr: float = Field(default=1e-4, gt=0)
    detached: bool = True
    """False lets the value loss train the policy's trunk too, which moves the policy itself: biased."""
    coefficient: float = Field(default=1.0, gt=0)
    """Of the value loss beside the policy's; matters where the trunk is shared."""

    def build(self, source: Policy) -> "Critic":
        """A head for the policy's hidden states."""
        return HeadCritic(self, source)


@component
class SeparateCritic(TrainedCritic):
    """A model of its own with a linear head; dtype, attention, checkpointing and LoRA are as the policy's."""

    path: str | None = None
    """Hub id or local folder; None: a copy of the policy's starting weights."""

    def check(self, policy: PolicyOptions) -> None:
        """A local folder must hold a model."""
        if self.path is not None:
            with _naming_the_critic():
                self._held_as(policy, self.path).check()

    def source(self, policy: Policy, options: PolicyOptions, seed: int) -> Policy:
        """The policy, or the model at `path`, which must read the policy's tokens."""
        if self.path is None:
            return policy
        with _naming_the_critic():
            source = self._held_as(options, self.path).load(seed)
        if source.tokenizer.get_vocab() != policy.tokenizer.get_vocab():
            raise UserError(f"critic.path={self.path}: its tokenizer is not the policy's, whose tokens it must value")
        return source

    def outlined_source(self, policy: Policy, options: PolicyOptions) -> Policy:
        """The policy, or the model at `path`, on the meta device."""
        if self.path is None:
            return policy
        with _naming_the_critic():
            return Policy(self._held_as(options, self.path).outline(), None)

    def build(self, source: Policy) -> "Critic":
        """A trunk with a head."""
        return ModelCritic(self, source)

    def _held_as(self, policy: PolicyOptions, path: str) -> HuggingFace:
        return HuggingFace(
            path=path,
            trust_remote_code=getattr(policy, "trust_remote_code", False),
            dtype=policy.dtype,
            attention=policy.attention,
            gradient_checkpointing=policy.gradient_checkpointing,
            lora=policy.lora,
        )


class Critic(nn.Module, ABC):
    """The expected reward before every response token, given the prompt and the tokens so far. (PPO, arXiv 1707.06347.)

    It regresses on the response's whole return, which for a reward at the end is the same at every token. This is
    unbiased for the policy's values whatever lambda the advantages have; TRL and verl regress on advantage plus old
    value instead, which follows the critic's own errors where lambda is below 1.
    """

    reads_policy: bool
    """Whether it values the hidden states of the policy's own forward pass."""

    def __init__(self, lr: float, value_clip: float | None, warmup_iterations: int, hidden_size: int) -> None:
        super().__init__()
        self.lr = lr
        self.value_clip = value_clip
        self.warmup_iterations = warmup_iterations
        self.head = nn.Linear(hidden_size, 1)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, trajectories: Trajectories, policy_hidden_BTH: Tensor | None = None) -> Tensor:
        """The values, (B, T), 0 outside `response_mask_BT`; `policy_hidden_BTH` only where it `reads_policy`."""
        hidden_BTH = self.hidden_states(trajectories, policy_hidden_BTH)
        dtype = torch.promote_types(self.head.weight.dtype, torch.float32)
        with torch.autocast(hidden_BTH.device.type, enabled=False):  # bfloat16 has two digits: too few for a value
            weight, bias = self.head.weight.to(dtype), self.head.bias.to(dtype)
            values_BT = nn.functional.linear(hidden_BTH.to(dtype), weight, bias).squeeze(-1)
        return values_BT.masked_fill(~trajectories.response_mask_BT, 0.0)

    @abstractmethod
    def hidden_states(self, trajectories: Trajectories, policy_hidden_BTH: Tensor | None) -> Tensor:
        """What the head reads, (B, T, H): the state at the position that predicts the token."""

    def loss(self, values_BT: Tensor, trajectories: Trajectories, tokens: int) -> Tensor:
        """This part's share of half the mean squared error over the minibatch's action tokens.

        With `value_clip` the larger of that error and the one of the value held near the old one.
        """
        assert trajectories.returns_BT is not None
        returns_BT = trajectories.returns_BT.to(values_BT.dtype)
        errors_BT = (values_BT - returns_BT).square()
        if self.value_clip is not None:
            assert trajectories.values_BT is not None
            moved_BT = (values_BT - trajectories.values_BT).clamp(-self.value_clip, self.value_clip)
            errors_BT = torch.maximum(errors_BT, (trajectories.values_BT + moved_BT - returns_BT).square())
        return 0.5 * errors_BT.masked_fill(~trajectories.action_mask_BT, 0.0).sum() / max(1, tokens)


class HeadCritic(Critic):
    """A head on the policy's hidden states."""

    reads_policy = True

    def __init__(self, options: ValueHead, source: Policy) -> None:
        super().__init__(options.lr, options.value_clip, options.warmup_iterations, hidden_size(source))
        self.detached = options.detached
        self.coefficient = options.coefficient

    def hidden_states(self, trajectories: Trajectories, policy_hidden_BTH: Tensor | None) -> Tensor:
        """The policy's, with or without its gradient."""
        assert policy_hidden_BTH is not None
        return policy_hidden_BTH.detach() if self.detached else policy_hidden_BTH

    def loss(self, values_BT: Tensor, trajectories: Trajectories, tokens: int) -> Tensor:
        """Times its coefficient."""
        return self.coefficient * super().loss(values_BT, trajectories, tokens)


class ModelCritic(Critic):
    """A model of its own: the trunk of a causal language model, without the head that makes logits."""

    reads_policy = False

    def __init__(self, options: SeparateCritic, source: Policy) -> None:
        super().__init__(options.lr, options.value_clip, options.warmup_iterations, hidden_size(source))
        trunk = _trunk(source.model)
        self.trunk = copy.deepcopy(trunk) if options.path is None else trunk
        self.gradient_checkpointing = source.gradient_checkpointing

    def hidden_states(self, trajectories: Trajectories, policy_hidden_BTH: Tensor | None) -> Tensor:
        """The trunk's."""
        with dropout_off(self.trunk, checkpointing=self.gradient_checkpointing):
            return response_hidden_states(self.trunk, trajectories)


def hidden_size(policy: Policy) -> int:
    """The width of the states that the policy's logits are made from."""
    return int(policy.model.get_output_embeddings().weight.shape[-1])


def _trunk(model: Any) -> nn.Module:
    """The model below its output embedding; adapters sit within its layers and come along."""
    trunk: nn.Module = base_model(model).base_model
    return trunk


@contextlib.contextmanager
def _naming_the_critic() -> Iterator[None]:
    """Mistakes in the path are told of the key that holds it."""
    try:
        yield
    except UserError as error:
        raise UserError(str(error).replace("policy.path", "critic.path", 1)) from error.__cause__
