"""Token losses to one number.

Every aggregation is a sum of token losses over a divisor that is fixed by the whole minibatch *before* it is split, so
that micro-batches, accumulation and ranks add up to the same result.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from tpg.component import component


@dataclass(frozen=True)
class MinibatchSize:
    """What one optimizer step covers, over all micro-batches and ranks; unscored responses do not count."""

    responses: int
    tokens: int
    max_response_tokens: int
    """The limit that responses were generated with."""


@component
class Aggregation(ABC):
    """How token losses become the number that is minimised."""

    def without(self) -> "dict[str, Aggregation]":
        """This aggregation less what may bias it, by the ingredient's name; the audit blames by these."""
        return {}

    @abstractmethod
    def divisors(self, mask_BT: Tensor, size: MinibatchSize) -> Tensor | int:
        """What each token's loss is divided by, broadcastable to (B, T)."""

    def __call__(self, losses_BT: Tensor, mask_BT: Tensor, size: MinibatchSize) -> Tensor:
        """This part's share of the minibatch's loss: shares of all parts sum to the whole."""
        zero = torch.zeros((), dtype=losses_BT.dtype, device=losses_BT.device)
        return (torch.where(mask_BT, losses_BT, zero) / self.divisors(mask_BT, size)).sum()


@component
class SequenceSum(Aggregation):
    """Mean over responses of the sum over tokens: the gradient of the expected reward, unbiased."""

    def divisors(self, mask_BT: Tensor, size: MinibatchSize) -> Tensor | int:
        """The responses."""
        return max(1, size.responses)


@component
class Constant(Aggregation):
    """`SequenceSum` over the length limit: the same direction, a smaller step. (Dr. GRPO, arXiv 2503.20783.)"""

    def without(self) -> dict[str, Aggregation]:
        """Without the division by length."""
        return {"division by the length limit": SequenceSum()}

    def divisors(self, mask_BT: Tensor, size: MinibatchSize) -> Tensor | int:
        """Responses * limit."""
        return max(1, size.responses * size.max_response_tokens)


@component
class TokenMean(Aggregation):
    """Mean over all tokens of the minibatch: long responses weigh more. Biased. (DAPO, arXiv 2503.14476.)"""

    def without(self) -> dict[str, Aggregation]:
        """Without the division by length."""
        return {"length normalisation": SequenceSum()}

    def divisors(self, mask_BT: Tensor, size: MinibatchSize) -> Tensor | int:
        """The tokens."""
        return max(1, size.tokens)


@component
class SequenceMean(Aggregation):
    """Mean over responses of the mean over tokens: a token of a long response weighs less. Biased.

    As GRPO was published (arXiv 2402.03300).
    """

    def without(self) -> dict[str, Aggregation]:
        """Without the division by length."""
        return {"length normalisation": SequenceSum()}

    def divisors(self, mask_BT: Tensor, size: MinibatchSize) -> Tensor | int:
        """Responses * tokens of the response."""
        return max(1, size.responses) * mask_BT.sum(-1, keepdim=True).clamp(min=1)
