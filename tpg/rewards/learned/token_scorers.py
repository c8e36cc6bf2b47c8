"""Rewards of a response's tokens, summed: token-level reward models, and what preference training left in a policy."""

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from tpg.errors import UserError
from tpg.numerics import masked_sum, token_statistics
from tpg.rewards.learned import pretrained
from tpg.rewards.learned.options import Implicit, TokenSum
from tpg.rewards.learned.rendering import Conversation
from tpg.rewards.learned.scorers import SpanScorer


class TokenSumScorer(SpanScorer):
    """The sum of a token classifier's logits over the response."""

    def __init__(self, key: str, term: TokenSum) -> None:
        place = f"{key}.path"
        tokenizer = _spanning(place, term.path, pretrained.load_tokenizer(place, term.path, term.revision))
        model = pretrained.load_model(place, term.path, term.revision, term.kind, term.dtype)
        pretrained.check_one_label(place, term.path, model.config.num_labels)
        super().__init__(key, term, tokenizer, {"path": model})

    def values(self, conversations: Sequence[Conversation], ids_BT: Tensor, mask_BT: Tensor) -> Tensor:
        """The sums, in double precision: many small rewards lose nothing."""
        logits_BT = self.models[0](input_ids=ids_BT, attention_mask=mask_BT).logits[..., 0]
        return masked_sum(logits_BT.double(), own_mask(conversations, ids_BT))


class ImplicitScorer(SpanScorer):
    """`beta * (log pi - log pi_ref)` of the response."""

    def __init__(self, key: str, term: Implicit) -> None:
        place, other = f"{key}.path", f"{key}.reference_path"
        tokenizer = _spanning(place, term.path, pretrained.load_tokenizer(place, term.path, term.revision))
        models = {
            "path": pretrained.load_model(place, term.path, term.revision, term.kind, term.dtype),
            "reference_path": pretrained.load_model(
                other, term.reference_path, term.reference_revision, term.kind, term.dtype
            ),
        }
        self.closing = None if tokenizer.chat_template else tokenizer.eos_token_id
        self.beta = term.beta
        super().__init__(key, term, tokenizer, models)

    def values(self, conversations: Sequence[Conversation], ids_BT: Tensor, mask_BT: Tensor) -> Tensor:
        """The log-ratios, scaled."""
        own_BT = own_mask(conversations, ids_BT)
        own_BT[:, 0] = False  # nothing comes before it to foretell it
        policy_B, reference_B = (response_logprobs(model, ids_BT, mask_BT, own_BT) for model in self.models)
        return self.beta * (policy_B - reference_B)


def own_mask(conversations: Sequence[Conversation], ids_BT: Tensor) -> Tensor:
    """Where the responses' own tokens are, (B, T)."""
    place_T = torch.arange(ids_BT.shape[1], device=ids_BT.device)
    first_B, stop_B = (
        torch.tensor([getattr(each.response, end) for each in conversations], device=ids_BT.device)[:, None]
        for end in ("start", "stop")
    )
    return (place_T >= first_B) & (place_T < stop_B)


def response_logprobs(model: nn.Module, ids_BT: Tensor, mask_BT: Tensor, own_BT: Tensor) -> Tensor:
    """The log-probability of the tokens that are marked, summed, nats, (B,)."""
    columns = own_BT.any(0).nonzero()
    if not len(columns):
        return torch.zeros(len(ids_BT), dtype=torch.float64, device=ids_BT.device)
    first, last = int(columns[0]), int(columns[-1])
    wanted = torch.arange(first - 1, last, device=ids_BT.device)
    kept: dict[str, Any] = {}
    if "logits_to_keep" in inspect.signature(model.forward).parameters:
        kept["logits_to_keep"] = wanted  # over a whole vocabulary, prompts would fill the memory
    logits_BTV = model(input_ids=ids_BT, attention_mask=mask_BT, **kept).logits
    if not kept:
        logits_BTV = logits_BTV[:, wanted]
    logprobs_BT = token_statistics(logits_BTV, ids_BT[:, first : last + 1], 1.0).logprobs
    return masked_sum(logprobs_BT.double(), own_BT[:, first : last + 1])


def _spanning(key: str, path: str, tokenizer: Any) -> Any:
    """The tokenizer, if it tells where its tokens stand in a text."""
    if not tokenizer.is_fast:
        raise UserError(
            f"{key}={path}: its tokenizer cannot tell which tokens are the response's; convert it to tokenizer.json"
        )
    return tokenizer
