"""Reward models that were learned, as options: rewards of whole responses, by weights that stay as they are."""

import re
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field, field_validator

from tpg.component import component
from tpg.errors import UserError
from tpg.rewards.base import LoadedTerm, Scorer
from tpg.rewards.learned import pretrained
from tpg.rewards.learned.normalization import Normalization
from tpg.rewards.learned.rendering import SEPARATOR


@component
class Learned(LoadedTerm, ABC):
    """A model of the Hugging Face hub or of a local folder that reads prompt and response; safetensors only.

    Both are rendered by the model's own tokenizer. A conversation that is too long for it is unscored, never cut.
    """

    paths: ClassVar[tuple[str, ...]] = ("path",)
    """The keys that name models."""
    kind: ClassVar[str]
    """Transformers' class that reads them."""

    path: str
    revision: str | None = None
    device: str = "auto"
    """`auto` is the device of the process that trains. Each process has a copy."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Of its weights and passes, whatever the trainer's precision is."""
    tokens_per_batch: int = Field(default=16384, ge=1)
    """In a pass, padding included; a longer conversation passes alone."""
    max_tokens: int | None = Field(default=None, ge=2)
    """Of a conversation; None: what the model was made for."""
    separator: str = SEPARATOR
    """Between prompt and response where the tokenizer has no chat template."""
    normalization: Normalization | None = None
    clip: float | None = Field(default=None, gt=0)
    """The reward lies within [-clip, clip], after the normalisation."""

    @field_validator("device")
    @classmethod
    def _exists(cls, device: str) -> str:
        if not re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", device):
            raise ValueError(f"{device!r} is none of auto, cpu, mps, cuda, cuda:0, cuda:1, ...")
        return device

    def files(self) -> dict[str, Path]:
        """Local folders; what the hub holds for a revision does not change."""
        named = {key: pretrained.local(getattr(self, key)) for key in self.paths}
        return {key: folder for key, folder in named.items() if folder is not None}

    def check(self, key: str) -> None:
        """Raise `UserError` for a local folder that is missing or holds no such model."""
        pretrained.check_folder(f"{key}.path", self.path)
        if self.normalization is not None:
            self.normalization.check(key, pretrained.local(self.path))

    @abstractmethod
    def load(self, key: str) -> Scorer:
        """Read model and tokenizer."""

    def outlined(self, key: str) -> list[Any]:
        """The models on the meta device: every shape and type, no weight. Raises `UserError` for what is not there."""
        revisions = {name: getattr(self, name.replace("path", "revision")) for name in self.paths}
        return [
            pretrained.outlined(f"{key}.{name}", getattr(self, name), revision, self.kind, self.dtype)
            for name, revision in revisions.items()
        ]


@component
class Classifier(Learned):
    """A sequence classifier's one logit, or the log-probability of one of its labels."""

    kind: ClassVar[str] = "AutoModelForSequenceClassification"

    label: str | int | None = None
    """Its name or number."""

    def check(self, key: str) -> None:
        """Raise `UserError` for what is missing in a local folder, the label too."""
        super().check(key)
        if (folder := pretrained.local(self.path)) is not None:
            labels = pretrained.labels(pretrained.read_config(f"{key}.path", folder))
            pretrained.label_number(key, self.label, labels)

    def load(self, key: str) -> Scorer:
        """Read model and tokenizer."""
        from tpg.rewards.learned.scorers import ClassifierScorer

        return ClassifierScorer(key, self)


@component
class TokenSum(Learned):
    """What a token-level reward model, a token classifier of one label, gives the response's own tokens in all.

    The sum is a response-level reward whose policy gradient is that of the token-level rewards. (arXiv 2506.02553.)
    """

    kind: ClassVar[str] = "AutoModelForTokenClassification"

    def check(self, key: str) -> None:
        """Raise `UserError` for what is missing in a local folder, and for a head of several labels."""
        super().check(key)
        if (folder := pretrained.local(self.path)) is not None:
            labels = pretrained.labels(pretrained.read_config(f"{key}.path", folder))
            pretrained.check_one_label(f"{key}.path", self.path, len(labels))

    def load(self, key: str) -> Scorer:
        """Read model and tokenizer."""
        from tpg.rewards.learned.token_scorers import TokenSumScorer

        return TokenSumScorer(key, self)


@component
class Implicit(Learned):
    """`beta * sum over the response's tokens of (log pi - log pi_ref)`: what a preference-trained model came to reward.

    (DPO, arXiv 2305.18290.) Both are causal language models with one tokenizer, that of `path`.
    """

    paths: ClassVar[tuple[str, ...]] = ("path", "reference_path")
    kind: ClassVar[str] = "AutoModelForCausalLM"

    reference_path: str
    """What the model was before the preferences."""
    reference_revision: str | None = None
    beta: float = Field(default=0.1, gt=0)
    tokens_per_batch: int = Field(default=4096, ge=1)
    separator: str = ""

    def check(self, key: str) -> None:
        """Raise `UserError` for what is missing in either folder, and where both are one."""
        super().check(key)
        own, reference = (self.path, self.revision), (self.reference_path, self.reference_revision)
        if own == reference:
            raise UserError(f"{key}.reference_path={self.reference_path}: is the model itself; every reward would be 0")
        pretrained.check_folder(f"{key}.reference_path", self.reference_path, tokenizer=False)

    def load(self, key: str) -> Scorer:
        """Read both models and the tokenizer."""
        from tpg.rewards.learned.token_scorers import ImplicitScorer

        return ImplicitScorer(key, self)
