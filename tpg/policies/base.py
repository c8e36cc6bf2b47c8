"""What a policy option is, and the policy that it loads."""

import contextlib
import copy
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from tpg.component import component
from tpg.policies.attention import Decoder, why_not
from tpg.policies.logprobs import response_statistics
from tpg.trajectories import Trajectories

Dtype = Literal["float32", "bfloat16", "float16"]


@component
class LoRA:
    """Low-rank adapters on the linear layers; only they are trained. (arXiv 2106.09685.)"""

    rank: int = Field(default=16, ge=1)
    alpha: int = Field(default=32, ge=1)
    target_modules: str | list[str] = "all-linear"

    def wrap(self, model: nn.Module) -> nn.Module:
        """The model with fresh adapters, which leave its output unchanged until they are trained."""
        import peft

        targets = self.target_modules
        config = peft.LoraConfig(
            r=self.rank,
            lora_alpha=self.alpha,
            target_modules=targets if isinstance(targets, str) else list(targets),
            lora_dropout=0.0,
            task_type="CAUSAL_LM",
        )
        return peft.get_peft_model(model, config)


@component
class PolicyOptions(ABC):
    """Where a policy comes from and how it is held."""

    dtype: Dtype = "float32"
    """Of the weights. Mixed precision over float32 weights is `trainer.precision`."""
    attention: str = "sdpa"
    """transformers' attention implementation: eager, sdpa, flash_attention_2, ..."""
    gradient_checkpointing: bool = False
    lora: LoRA | None = None

    def check(self) -> None:  # noqa: B027
        """Raise `UserError` if what the policy is loaded from is missing. Loads nothing."""

    @abstractmethod
    def load_model_and_tokenizer(self, seed: int) -> tuple[Any, Any]:
        """The Hugging Face model and tokenizer."""

    def outlined_model(self) -> Any:
        """The Hugging Face model made on the meta device; one that reads weights makes it from its config instead."""
        return self.load_model_and_tokenizer(0)[0]

    def outline(self) -> Any:
        """The model in its adapters, with every shape and type and without weights: on the meta device."""
        with torch.device("meta"):
            model = self.outlined_model()
            return model if self.lora is None else self.lora.wrap(model)

    def load(self, seed: int) -> "Policy":
        """The policy, ready to generate and to be trained."""
        model, tokenizer = self.load_model_and_tokenizer(seed)
        if self.gradient_checkpointing:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        if self.lora is not None:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                model = self.lora.wrap(model)
        return Policy(model, tokenizer, gradient_checkpointing=self.gradient_checkpointing)


class Policy(nn.Module):
    """A causal language model with its tokenizer: what generates, and whose log-probabilities are trained."""

    def __init__(self, model: Any, tokenizer: Any, *, gradient_checkpointing: bool = False) -> None:
        super().__init__()
        self.model = model
        self.tokenizer = tokenizer
        self.gradient_checkpointing = gradient_checkpointing
        self._decoder: Decoder | None = None
        self.eval()

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.model.parameters()).device

    @property
    def end_ids(self) -> frozenset[int]:
        """The tokens that end a response."""
        configured = self.model.generation_config.eos_token_id
        ids = configured if isinstance(configured, list) else [configured]
        return frozenset(i for i in [*ids, self.tokenizer.eos_token_id] if i is not None)

    @property
    def pad_id(self) -> int:
        """What fills the columns that masks hide."""
        return self.tokenizer.pad_token_id if self.tokenizer.pad_token_id is not None else min(self.end_ids, default=0)

    @property
    def max_positions(self) -> int | None:
        """The longest context that the model was made for, tokens."""
        return getattr(self.model.config, "max_position_embeddings", None)

    def decode(self, token_ids: list[int]) -> str:
        """Text without special tokens."""
        return self.tokenizer.decode(token_ids, skip_special_tokens=True)

    def statistics(self, trajectories: Trajectories, temperature: float, **options: Any) -> Any:
        """Log-probabilities of the response tokens: `tpg.policies.logprobs.response_statistics` of this model."""
        if self._decoder is None and self.shares_prompts(0):
            self._decoder = Decoder(self.model)
        with dropout_off(self.model, checkpointing=self.gradient_checkpointing):
            return response_statistics(self.model, trajectories, temperature, decoder=self._decoder, **options)

    def shares_prompts(self, tokens: int) -> bool:
        """Whether `statistics` of contexts of so many tokens computes a prompt once for all its responses."""
        return why_not(self.model, tokens) is None

    def save(self, folder: Path) -> None:
        """Write model and tokenizer in Hugging Face format; adapters are merged into the weights."""
        model = self.model
        if hasattr(model, "merge_and_unload"):
            model = copy.deepcopy(model).merge_and_unload()
        model.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)


@contextlib.contextmanager
def dropout_off(model: nn.Module, *, checkpointing: bool) -> Iterator[None]:
    """For a pass that may be differentiated: no dropout, and activations are recomputed if `checkpointing`.

    Dropout stays off, as in the rollout, or the policy would differ from the one that is scored; but transformers
    checkpoints activations only in training mode: in those modules alone it is set.
    """
    for module in model.modules():
        module.training = checkpointing and torch.is_grad_enabled() and hasattr(module, "gradient_checkpointing")
    try:
        yield
    finally:
        model.eval()


class Reference:
    """The frozen policy that a divergence is measured from.

    With adapters it is the policy with them switched off; otherwise a copy. Not a module, so that it is neither
    trained nor written into checkpoints.
    """

    def __init__(self, policy: Policy) -> None:
        self._policy = policy
        self._adapters_off = hasattr(policy.model, "disable_adapter")
        self._frozen = policy if self._adapters_off else copy.deepcopy(policy).requires_grad_(False)

    @property
    def frozen_copy(self) -> Policy | None:
        """The frozen copy; None where it is the policy without its adapters."""
        return None if self._adapters_off else self._frozen

    @contextlib.contextmanager
    def _active(self) -> Iterator[Policy]:
        if self._adapters_off:
            with self._policy.model.disable_adapter():
                yield self._policy
        else:
            if self._frozen.device != self._policy.device:
                self._frozen.to(self._policy.device)
            yield self._frozen

    @torch.no_grad()
    def logprobs(self, trajectories: Trajectories, temperature: float) -> Tensor:
        """The reference's log-probabilities of the response tokens, (B, T), nats."""
        with self._active() as frozen:
            return frozen.statistics(trajectories, temperature).logprobs
