"""Learned reward models at work: frozen weights, batches by length, values that no batch moves."""

import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from tpg.errors import UserError, with_kind
from tpg.rewards.base import Failure, Sample, Scorer, Told
from tpg.rewards.learned import pretrained
from tpg.rewards.learned.normalization import Normalizer
from tpg.rewards.learned.options import Classifier, Learned
from tpg.rewards.learned.rendering import Conversation, TooLongError, conversation, conversation_ids


class LearnedScorer(Scorer, ABC):
    """Values of conversations by models that stay as they are.

    No module of the one that trains, so that nothing of it is trained or written into checkpoints.
    """

    def __init__(self, key: str, term: Learned, tokenizer: Any, models: Mapping[str, nn.Module]) -> None:
        for name, model in models.items():
            pretrained.check_vocabulary(f"{key}.{name}", getattr(term, name), tokenizer, model)
        self.key, self.term, self.tokenizer = key, term, tokenizer
        self.models: list[Any] = list(models.values())
        limits = (pretrained.longest(tokenizer, model, term.max_tokens) for model in self.models)
        self.max_tokens = min((limit for limit in limits if limit is not None), default=None)
        self.normalizer = self._normalizer()
        self.learns = self.normalizer.learns
        self._values: list[float] = []
        self._clipped = 0
        self._try_template()
        if term.device != "auto":
            self._move(term.device)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.models[0].parameters()).device

    def to(self, device: str) -> None:
        """Move the weights, unless the option names their device."""
        if self.term.device == "auto":
            self._move(device)

    def begin(self, sample: Sample) -> Conversation | Failure:
        """Turn a sample into tokens."""
        try:
            return self.rendered(sample)
        except TooLongError as error:
            return Failure("too long", str(error))
        except Exception as error:  # a chat template raises what it likes
            return Failure("raised", with_kind(error))

    def rendered(self, sample: Sample) -> Conversation:
        """The tokens of prompt and response. Raises `TooLongError` where there are too many."""
        ids = conversation_ids(self.tokenizer, sample.prompt, sample.response, self.max_tokens, self.term.separator)
        return Conversation(ids, range(0))

    @abstractmethod
    def values(self, conversations: Sequence[Conversation], ids_BT: Tensor, mask_BT: Tensor) -> Tensor:
        """The model's values of a batch that is padded on the right, (B,)."""

    def outcomes(self, begun: Sequence[Conversation | Failure]) -> list[float | Failure]:
        """Give the values, normalised and clipped."""
        places = [place for place, each in enumerate(begun) if isinstance(each, Conversation)]
        conversations = [each for each in begun if isinstance(each, Conversation)]
        self._values = self._computed(conversations)
        outcomes: list[float | Failure] = [each if isinstance(each, Failure) else 0.0 for each in begun]
        limit, self._clipped = self.term.clip, 0
        for place, value in zip(places, self._values, strict=True):
            reward = self.normalizer.normalized(value)
            if limit is not None and abs(reward) > limit:
                reward = limit if reward > 0 else -limit
                self._clipped += 1
            outcomes[place] = reward
        return outcomes

    def metrics(self) -> dict[str, Told]:
        """`raw_mean`, the mean before the normalisation, and `clipped`, the share that the clip changed."""
        told, count = {}, len(self._values)
        if self.term.normalization is not None and count:
            told["raw_mean"] = Told(sum(self._values), count)
        if self.term.clip is not None and count:
            told["clipped"] = Told(self._clipped, count)
        return told

    def seen(self) -> list[float]:
        """The values of the last call, before they were normalised."""
        return [value for value in self._values if abs(value) < float("inf")]

    def learn(self, values: Sequence[float]) -> None:
        """Let the normalisation take in those of an iteration."""
        self.normalizer.learn(values)

    def state(self) -> dict[str, Any]:
        """That of the normalisation."""
        return self.normalizer.state()

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take it back."""
        self.normalizer.restore(state)

    def _computed(self, conversations: Sequence[Conversation]) -> list[float]:
        values = [0.0] * len(conversations)
        # What trains may compute in another precision around this.
        with torch.inference_mode(), torch.autocast(self.device.type, enabled=False):
            for places in batches([len(each.ids) for each in conversations], self.term.tokens_per_batch):
                self.on_wait()
                chosen = [conversations[place] for place in places]
                for place, value in zip(places, self._passed(chosen).tolist(), strict=True):
                    values[place] = value
        return values

    def _passed(self, conversations: Sequence[Conversation]) -> Tensor:
        width = max(len(each.ids) for each in conversations)
        pad = self.pad([each.ids for each in conversations])
        if pad is None:
            return torch.cat([self._passed([each]) for each in conversations])
        ids_BT = torch.full((len(conversations), width), pad, dtype=torch.long)
        mask_BT = torch.zeros(len(conversations), width, dtype=torch.long)
        for row, each in enumerate(conversations):
            ids_BT[row, : len(each.ids)] = torch.tensor(each.ids)
            mask_BT[row, : len(each.ids)] = 1
        try:
            return self.values(conversations, ids_BT.to(self.device), mask_BT.to(self.device))
        except torch.OutOfMemoryError as error:
            raise UserError(
                f"{self.key}.tokens_per_batch={self.term.tokens_per_batch}: a pass of {len(conversations)} x {width}"
                f" tokens needs more memory than {self.device} has left; lower it"
            ) from error

    def pad(self, rows: Sequence[Sequence[int]]) -> int | None:
        """What fills rows up; None where they can only pass one by one."""
        return self._own_pad or 0

    @property
    def _own_pad(self) -> int | None:
        """The token that the model was made to be padded with."""
        given = self.models[0].config.get_text_config().pad_token_id
        known = self.models[0].get_input_embeddings().num_embeddings
        return given if given is not None and 0 <= given < known else None

    def _move(self, device: str) -> None:
        try:
            for model in self.models:
                model.to(device)
        except (RuntimeError, AssertionError) as error:
            reason = re.split(r"\. |\n", str(error))[0]
            raise UserError(f"{self.key}.device={self.term.device}: {reason}") from error

    def _normalizer(self) -> Normalizer:
        term = self.term
        if term.normalization is None:
            return Normalizer()
        return term.normalization.normalizer(self.key, lambda: pretrained.statistics(term.path, term.revision))

    def _try_template(self) -> None:
        try:
            self.rendered(Sample(prompt="a", response="b"))
        except Exception as error:
            raise UserError(
                f"{self.key}.path={self.term.path}: its tokenizer does not render a prompt and a response:"
                f" {with_kind(error)}"
            ) from error


class ClassifierScorer(LearnedScorer):
    """A sequence classifier's logit, or a label's log-probability."""

    def __init__(self, key: str, term: Classifier) -> None:
        place = f"{key}.path"
        tokenizer = pretrained.load_tokenizer(place, term.path, term.revision)
        model = pretrained.load_model(place, term.path, term.revision, term.kind, term.dtype)
        self.label = pretrained.label_number(key, term.label, model.config.id2label)
        super().__init__(key, term, tokenizer, {"path": model})
        self.finds_ends = self._own_pad is not None
        """Whether the model tells by its own padding where a row ends."""

    def pad(self, rows: Sequence[Sequence[int]]) -> int | None:
        """The model's own, or else one that is in none of the rows: it reads off the last token that is not padding."""
        if self.finds_ends:
            return super().pad(rows)
        used, (model,) = set().union(*rows), self.models
        free = next((token for token in range(model.get_input_embeddings().num_embeddings) if token not in used), None)
        model.config.get_text_config().pad_token_id = free
        return free if len(rows) > 1 else free or 0

    def values(self, conversations: Sequence[Conversation], ids_BT: Tensor, mask_BT: Tensor) -> Tensor:
        """The logit, or the log-probability."""
        (model,) = self.models
        logits_BL = model(input_ids=ids_BT, attention_mask=mask_BT).logits.float()
        if self.label is None:
            return logits_BL[:, 0]
        independent = model.config.problem_type == "multi_label_classification"
        logp_BL = nn.functional.logsigmoid(logits_BL) if independent else logits_BL.log_softmax(-1)
        return logp_BL[:, self.label]


class SpanScorer(LearnedScorer):
    """A model that values the response's own tokens, which its tokenizer must find in the text."""

    closing: int | None = None
    """What ends a response where neither template nor tokenizer do."""

    def rendered(self, sample: Sample) -> Conversation:
        """The tokens, and which are the response's."""
        return conversation(
            self.tokenizer,
            sample.prompt,
            sample.response,
            self.max_tokens,
            self.term.separator,
            ended=not sample.truncated,
            closing=self.closing,
        )


def batches(lengths: Sequence[int], tokens: int) -> Iterator[list[int]]:
    """Places of rows of like lengths, the longest first; a batch is at most `tokens` with its padding, or one row."""
    order = sorted(range(len(lengths)), key=lambda place: -lengths[place])
    while order:
        count = max(1, tokens // max(1, lengths[order[0]]))
        yield order[:count]
        order = order[count:]
