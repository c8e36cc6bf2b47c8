"""The record of single tokens: what each weighed, and how far the update moved its log-probability."""

import json
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from tpg.training.experience import Experience
from tpg.training.minibatches import MicroBatch
from tpg.training.module import IterationCallback, TrajectoryPolicyGradient
from tpg.training.options import Checkpointing
from tpg.training.run_folder import RunFolder
from tpg.trajectories import Trajectories

MOST_TOKENS = 100_000
"""Response tokens that are recorded at most, where the first group alone has no more: a file of about 4 MB."""


class TokenTexts:
    """The text of single tokens, special ones and leading spaces included."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        # Some tokenizers drop the space before a text's first token, so a token is decoded after another one.
        self._before = list(tokenizer.encode("a", add_special_tokens=False))
        self._head = self._decode(self._before)
        self._known: dict[int, str] = {}

    def __call__(self, token_ids: Sequence[int]) -> list[str]:
        """One text a token."""
        for token_id in set(token_ids) - self._known.keys():
            text = self._decode([*self._before, token_id])
            begins = text.startswith(self._head)
            self._known[token_id] = text[len(self._head) :] if begins else self._decode([token_id])
        return [self._known[token_id] for token_id in token_ids]

    def _decode(self, token_ids: list[int]) -> str:
        return self._tokenizer.decode(token_ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)


class TokenRecorder(IterationCallback):
    """Writes tokens/iteration-....jsonl at the first and the last iteration and every so many between.

    Log-probabilities before the first and after the last update are forward passes of their own, of the same shapes, so
    that a policy that has not moved changes nothing; their seconds and the file's are `timing_s/record`.
    """

    def __init__(self, folder: RunFolder, options: Checkpointing, iterations: int) -> None:
        self.folder = folder
        self.options = options
        self.iterations = iterations
        self._texts: TokenTexts | None = None
        self._before: tuple[Tensor, Tensor] | None = None
        """The recorded responses, and their log-probabilities before the update."""

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: MicroBatch, batch_idx: int
    ) -> None:
        """Before an iteration's first backward pass, while the policy is the one that generated."""
        assert isinstance(pl_module, TrajectoryPolicyGradient)
        if batch_idx == 0 and self._is_due(pl_module.iteration):
            assert pl_module.experience is not None
            start = time.perf_counter()
            chosen = recorded_responses(pl_module.experience.trajectories, self.options.recorded_responses)
            self._before = chosen, _logprobs(pl_module, chosen)
            _count(pl_module, start)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """After the last update, and before the module closes the iteration's row."""
        if self._before is None:
            return
        assert isinstance(pl_module, TrajectoryPolicyGradient)
        assert pl_module.experience is not None
        start = time.perf_counter()
        (chosen, before_BT), self._before = self._before, None
        changes_BT = _logprobs(pl_module, chosen) - before_BT
        self._texts = self._texts or TokenTexts(pl_module.collector.policy.tokenizer)
        records = token_records(pl_module.experience, chosen, changes_BT, self._texts)
        self.folder.write_tokens(pl_module.iteration, [json.dumps(record, ensure_ascii=False) for record in records])
        _count(pl_module, start)

    def _is_due(self, iteration: int) -> bool:
        due = iteration in (1, self.iterations) or iteration % self.options.every == 0
        return due and self.options.recorded_responses > 0


def recorded_responses(trajectories: Trajectories, responses: int) -> Tensor:
    """The indices of those that are recorded: whole groups as they come, while they are so few; always the first."""
    members: dict[int, list[int]] = {}
    for index, group in enumerate(trajectories.group_B.tolist()):
        members.setdefault(group, []).append(index)
    chosen: list[int] = []
    lengths_B = trajectories.lengths_B
    for group_members in members.values():
        wider = chosen + group_members
        if chosen and (len(wider) > responses or int(lengths_B[wider].sum()) > MOST_TOKENS):
            break
        chosen = wider
    return torch.tensor(chosen)


def token_records(
    experience: Experience, chosen: Tensor, changes_BT: Tensor, texts: TokenTexts
) -> list[dict[str, Any]]:
    """A record for each chosen response; `changes_BT` has a row for each of these."""
    part = experience.trajectories.select(chosen)
    kept_B = experience.weighed.kept_B[chosen].tolist()
    assert part.rewards_B is not None
    assert part.scored_B is not None
    assert part.weights_BT is not None
    lengths_B, truncated_B = part.lengths_B.tolist(), part.truncated_B.tolist()
    records = []
    for i, index in enumerate(chosen.tolist()):
        sample = experience.scored.samples[index]
        terms = {name: float(values_B[i]) for name, values_B in part.reward_terms_B.items()}
        records.append(
            {
                "iteration": experience.iteration,
                "row": int(part.row_B[i]),
                "draw": int(part.draw_B[i]),
                "index": int(part.response_index_B[i]),
                "prompt": sample.prompt,
                "answer": sample.answer,
                "reward": float(part.rewards_B[i]) if part.scored_B[i] else None,
                "rewards": {name: None if value != value else value for name, value in terms.items()},
                "kept": kept_B[i],
                "truncated": truncated_B[i],
                "tokens": texts(sample.token_ids),
                "logprobs": _numbers(part.rollout_logprobs_BT[i, : lengths_B[i]]),
                "weights": _numbers(part.weights_BT[i, : lengths_B[i]]),
                "changes": _numbers(changes_BT[i, : lengths_B[i]]),
            }
        )
    return records


def _numbers(values_T: Tensor) -> list[float]:
    """Six digits, which keeps the file small."""
    return [float(f"{value:.6g}") for value in values_T.tolist()]


def _logprobs(module: TrajectoryPolicyGradient, chosen: Tensor) -> Tensor:
    """The policy's log-probabilities of the chosen responses as it stands, nats."""
    assert module.experience is not None
    passes = replace(module.collector.passes, reference=None, critic=None)
    part = module.experience.trajectories.select(chosen).trimmed()
    with module.trainer.precision_plugin.forward_context():
        logprobs_BT = passes.with_logprobs(part, old=True).old_logprobs_BT
    assert logprobs_BT is not None
    return logprobs_BT


def _count(module: TrajectoryPolicyGradient, start: float) -> None:
    """Give the time since `start` to the recording and not to the update."""
    assert module.experience is not None
    spent = time.perf_counter() - start
    seconds = module.experience.seconds
    seconds["record"] = seconds.get("record", 0.0) + spent
    module.update_metrics.started += spent
