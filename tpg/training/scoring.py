"""Rewards onto trajectories."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch

from tpg.policies.base import Policy
from tpg.rewards.base import Sample, Told, values_of
from tpg.rewards.model import Pending, RewardModel
from tpg.rollouts.engine import Finished, Prefix, expanded
from tpg.tasks.base import Example
from tpg.trajectories import FinishReason, Trajectories, concatenate


@dataclass(frozen=True)
class Scored:
    """Trajectories with rewards, the texts that were scored, and what went wrong."""

    trajectories: Trajectories
    samples: tuple[Sample, ...]
    failures: dict[str, dict[str, int]]
    """How often a term failed, by reason."""
    first_failure: dict[str, str]
    told: dict[str, Told] = field(default_factory=dict)
    """What loaded terms tell of themselves, as `<term>/<name>`."""

    @property
    def metrics(self) -> dict[str, float]:
        """The same as numbers."""
        return values_of(self.told)

    def with_spent(self, told: Mapping[str, Told]) -> "Scored":
        """With the totals, a judge's cost for one, of other responses that were scored for these."""
        totals = {name: each for name, each in told.items() if each.count is None}
        return replace(self, told=added([self.told, totals]))


def added(parts: Sequence[Mapping[str, Told]]) -> dict[str, Told]:
    """What is told of several shares, of all of them."""
    found: dict[str, Told] = {}
    for part in parts:
        for name, each in part.items():
            found[name] = found[name] + each if name in found else each
    return found


def joined(parts: Sequence[Scored]) -> Scored:
    """Several shares of one rollout as one."""
    failures: dict[str, Counter[str]] = {}
    first: dict[str, str] = {}
    for part in parts:
        for term, reasons in part.failures.items():
            failures.setdefault(term, Counter()).update(reasons)
        first = {**part.first_failure, **first}
    return Scored(
        trajectories=concatenate([part.trajectories for part in parts]),
        samples=tuple(sample for part in parts for sample in part.samples),
        failures={term: dict(reasons) for term, reasons in failures.items()},
        first_failure=first,
        told=added([part.told for part in parts]),
    )


class Scoring:
    """The rewards of one rollout, begun for each response as soon as that is complete.

    A reward model without worker processes scores when all are there. Of responses of an iteration of training, that
    iteration decides how the terms are combined.
    """

    def __init__(
        self,
        prefixes: Sequence[Prefix],
        examples: Sequence[Example],
        policy: Policy,
        reward_model: RewardModel,
        iteration: int | None = None,
    ) -> None:
        self.examples = examples
        self.policy = policy
        self.reward_model = reward_model
        self.iteration = iteration
        self._groups = [(each.prefix.row, each.prefix.draw) for each in expanded(prefixes)]
        self._begun: dict[int, tuple[Sample, Pending]] = {}
        self._in_advance = isinstance(reward_model, RewardModel)

    def finished(self, responses: Sequence[Finished]) -> None:
        """What an engine calls: begin to score these."""
        if self._in_advance:
            new = [response for response in responses if response.place not in self._begun]
            self._begin(
                {
                    response.place: self._sample(
                        response.token_ids, response.reason == FinishReason.LENGTH, self._groups[response.place]
                    )
                    for response in new
                }
            )

    def scored(self, trajectories: Trajectories) -> Scored:
        """Every trajectory's reward, in their order, once all are generated. Unscored rewards read 0."""
        columns = (trajectories.response_ids_BT, trajectories.response_mask_BT)
        tokens = [tuple(ids[mask].tolist()) for ids, mask in zip(*columns, strict=True)]
        truncated = trajectories.truncated_B.tolist()
        groups = list(zip(trajectories.row_B.tolist(), trajectories.draw_B.tolist(), strict=True))
        missing = {
            place: self._sample(tokens[place], truncated[place], groups[place])
            for place in range(len(tokens))
            if place not in self._begun
        }
        if self._in_advance:
            self._begin(missing)
            samples = tuple(self._begun[place][0] for place in range(len(tokens)))
            assert all(s.token_ids == ids for s, ids in zip(samples, tokens, strict=True)), "scored other tokens"
            rewards = self.reward_model.collect([self._begun[place][1] for place in range(len(tokens))], self.iteration)
        else:
            samples = tuple(missing.values())
            rewards = self.reward_model.score(samples)
        scored = trajectories.replace(
            rewards_B=torch.tensor(rewards.total, dtype=torch.float32).nan_to_num(),
            scored_B=torch.tensor(rewards.scored, dtype=torch.bool),
            reward_terms_B={name: torch.tensor(values, dtype=torch.float32) for name, values in rewards.terms.items()},
        )
        return Scored(scored, samples, rewards.failures, rewards.first_failure, rewards.told)

    def _begin(self, samples: Mapping[int, Sample]) -> None:
        pending = self.reward_model.submit(list(samples.values()))
        for (place, sample), jobs in zip(samples.items(), pending, strict=True):
            self._begun[place] = sample, jobs

    def _sample(self, token_ids: tuple[int, ...], truncated: bool, group: tuple[int, int]) -> Sample:
        example = self.examples[group[0]]
        return Sample(
            prompt=example.text,
            response=self.policy.decode(list(token_ids)),
            token_ids=token_ids,
            truncated=truncated,
            answer=example.answer,
            columns=example.columns,
            group=group,
        )


def score(
    trajectories: Trajectories,
    examples: Sequence[Example],
    policy: Policy,
    reward_model: RewardModel,
    iteration: int | None = None,
) -> Scored:
    """Every trajectory's reward; `examples` are the rows that `row_B` counts. Unscored rewards read 0."""
    return Scoring((), examples, policy, reward_model, iteration).scored(trajectories)
