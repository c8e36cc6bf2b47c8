"""A policy's backbone with a scalar head in place of its vocabulary: what a reward model is made of."""

import copy
import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tpg.errors import UserError
from tpg.policies.base import Policy, dropout_off


class RewardClassifier(nn.Module):
    """A sequence classifier of one logit, which is the reward of a whole conversation."""

    def __init__(self, policy: Policy, seed: int) -> None:
        super().__init__()
        self.model = _with_scalar_head(policy, seed)
        self.tokenizer = policy.tokenizer
        self.gradient_checkpointing = policy.gradient_checkpointing
        self._source = (policy.model,)
        """A tuple, so that its vocabulary's head is neither trained nor kept in checkpoints."""
        self.eval()

    def forward(self, conversations: list[tuple[int, ...]]) -> Tensor:
        """The rewards of conversations given as tokens, (B,), in float32 or more."""
        longest = max(map(len, conversations))
        device = next(self.parameters()).device
        ids = torch.full((len(conversations), longest), self.model.config.pad_token_id)
        mask = torch.zeros_like(ids)
        for row, conversation in enumerate(conversations):
            ids[row, : len(conversation)] = torch.tensor(conversation)
            mask[row, : len(conversation)] = 1
        with dropout_off(self.model, checkpointing=self.gradient_checkpointing):
            logits = self.model(input_ids=ids.to(device), attention_mask=mask.to(device), use_cache=False).logits
        return logits[:, 0].to(torch.promote_types(logits.dtype, torch.float32))

    def save(self, folder: Path) -> None:
        """Write model and tokenizer in Hugging Face format; adapters are merged into the weights."""
        model = self.model
        if hasattr(self._source[0], "merge_and_unload"):
            source, model = copy.deepcopy((self._source[0], self.model))  # together: they share the backbone
            source.merge_and_unload()
        model.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)


def _with_scalar_head(policy: Policy, seed: int) -> Any:
    """A classifier around the policy's own backbone, its head drawn anew."""
    from transformers import AutoModelForSequenceClassification

    source: Any = policy.model
    if hasattr(source, "get_base_model"):  # in adapters, which its layers keep
        source = source.get_base_model()
    config = copy.deepcopy(source.config)
    config.num_labels = 1
    if config.pad_token_id is None:
        config.pad_token_id = policy.pad_id
    if policy.tokenizer.pad_token_id is None:
        policy.tokenizer.pad_token = policy.tokenizer.convert_ids_to_tokens(policy.pad_id)
    try:
        with torch.device("meta"):
            classifier = AutoModelForSequenceClassification.from_config(config)
    except ValueError as error:
        kind = config.model_type
        raise UserError(f"policy: transformers has no sequence classifier of a {kind}; use another policy") from error
    if type(classifier.base_model) is not type(source.base_model):
        names = [type(model.base_model).__name__ for model in (classifier, source)]
        raise UserError(f"policy: a {config.model_type} classifies by a {names[0]}, and the policy has a {names[1]}")
    setattr(classifier, classifier.base_model_prefix, source.base_model)
    _draw_what_is_missing(classifier, source, seed)
    return classifier


def _draw_what_is_missing(classifier: nn.Module, source: Any, seed: int) -> None:
    """The head's weights, normal with variance 1 / (inputs + 1), and no bias. (arXiv 2009.01325.)"""
    like = next(source.parameters())
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in list(classifier.named_parameters()):
        if not parameter.is_meta:
            continue
        drawn = torch.zeros(parameter.shape)
        if drawn.ndim > 1:
            drawn.normal_(std=1 / math.sqrt(drawn.shape[-1] + 1), generator=generator)
        owner, _, leaf = name.rpartition(".")
        setattr(classifier.get_submodule(owner), leaf, nn.Parameter(drawn.to(like.device, like.dtype)))
