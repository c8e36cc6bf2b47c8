"""Supervised training on completions alone."""

import math
import reprlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tpg.errors import UserError
from tpg.policies.base import Policy
from tpg.policies.logprobs import context
from tpg.rollouts.engine import Continuation, Prefix, assembled
from tpg.stages.module import Rows, StageModule
from tpg.stages.options import SupervisedStage, short_enough
from tpg.tasks.base import Example
from tpg.tasks.demonstrations import Demonstration
from tpg.tasks.rendering import render_prompts
from tpg.training.splitting import Limits, Splitter
from tpg.trajectories import FinishReason, Trajectories

NO_LIMIT = 2**62


@dataclass(frozen=True)
class Tokens:
    """Demonstrations as tokens: prompts as a rollout would render them, responses with the token that ends them."""

    prompts: tuple[tuple[int, ...], ...]
    responses: tuple[tuple[int, ...], ...]
    overlong: int
    """How many were left out because they are too long."""

    def record(self, rows: Sequence[int], policy: Policy) -> Trajectories:
        """These rows as trajectories that a policy might have drawn."""
        continuations = [
            Continuation(Prefix(self.prompts[row], len(self.responses[row]), (0,), row=row), 0, 0) for row in rows
        ]
        ids = [self.responses[row] for row in rows]
        zeros = [torch.zeros(len(tokens)) for tokens in ids]
        return assembled(continuations, ids, zeros, [FinishReason.STOP] * len(ids), policy, 0)

    def __len__(self) -> int:
        return len(self.responses)

    def length(self, row: int) -> int:
        """Tokens of prompt and response."""
        return len(self.prompts[row]) + len(self.responses[row])

    def counted(self, rows: Sequence[int]) -> int:
        """Tokens that carry loss."""
        return sum(len(self.responses[row]) for row in rows)


def end_id(policy: Policy) -> int:
    """The token that a response ends with: the tokenizer's, or else one that ends the policy's responses."""
    own = policy.tokenizer.eos_token_id
    if own is None and not policy.end_ids:
        raise UserError("policy: names no token that ends a response, which it is to learn; give its tokenizer one")
    return int(own if own is not None else min(policy.end_ids))


def tokens_of(pairs: Sequence[Demonstration], policy: Policy, stage: SupervisedStage) -> Tokens:
    """All pairs that are short enough. Raises `UserError` for one that is not, unless it is to be left out."""
    examples = [Example(pair.prompt) for pair in pairs]
    prompts = render_prompts(stage.task, examples, policy.tokenizer, NO_LIMIT, "raise").token_ids
    responses = [_response(pair, policy) for pair in pairs]
    lengths = [len(prompt) + len(response) for prompt, response in zip(prompts, responses, strict=True)]
    what = "prompts with their responses are longer"
    kept = short_enough(stage, policy.max_positions, lengths, what, lambda row: examples[row].text)
    return Tokens(tuple(prompts[row] for row in kept), tuple(responses[row] for row in kept), len(pairs) - len(kept))


def _response(pair: Demonstration, policy: Policy) -> tuple[int, ...]:
    ids = tuple(policy.tokenizer(pair.response, add_special_tokens=False)["input_ids"])
    if ids and ids[-1] in policy.end_ids:
        ids = ids[:-1]
    if policy.end_ids.intersection(ids):
        raise UserError(
            f"demonstrations: the response {reprlib.repr(pair.response)} goes on after a token that ends a response;"
            " take it out of the text"
        )
    return (*ids, end_id(policy))


class SupervisedModule(StageModule[Tokens]):
    """The mean negative log-likelihood of response tokens; prompts carry no loss."""

    def __init__(self, policy: Policy, train: Tokens, held_out: Tokens, stage: SupervisedStage) -> None:
        super().__init__(policy, train, held_out, stage)
        self.policy = policy

    def parts(self, data: Tokens, rows: Sequence[int]) -> list[Rows]:
        """Within the bound on tokens, prompts shared and without padding where the policy can."""
        cut = self._splitter(data, rows).parts(torch.arange(len(rows)))
        return [tuple(rows[place] for place in part.tolist()) for part in cut]

    def cost(self, data: Tokens, part: Rows) -> int:
        """As the splitter counts them."""
        return self._splitter(data, part).cost(list(range(len(part))))

    def _splitter(self, data: Tokens, rows: Sequence[int]) -> Splitter:
        record = data.record(rows, self.policy)
        return Splitter(record, Limits(self.memory.tokens, None, self.policy.shares_prompts(context(record))))

    def share(self, part: Rows, rows: Sequence[int]) -> tuple[Tensor, dict[str, float]]:
        """The part's negative log-likelihood over the tokens of the whole step, nats a token."""
        return self._nll(self.data, part) / self.data.counted(rows), {}

    def _nll(self, tokens: Tokens, part: Rows) -> Tensor:
        record = tokens.record(part, self.policy).trimmed().to(self.policy.device)
        return -self.policy.statistics(record, 1.0).logprobs.sum()

    def measured(self) -> dict[str, float]:
        """Mean loss a held-out response token, nats, and perplexity."""
        tokens = self.held_out_data
        total = sum(nll for _, nll in self.over_held_out(lambda part: float(self._nll(tokens, part))))
        loss = total / tokens.counted(range(len(tokens)))
        return {"eval/loss": loss, "eval/perplexity": math.exp(min(loss, 700.0))}
