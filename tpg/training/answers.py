"""What an estimator asks for beyond the rewards: greedy responses and continuations, generated and scored."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from tpg.estimators.base import Continuations
from tpg.method import Method, State
from tpg.randomness import Purpose, key
from tpg.rewards.base import Told
from tpg.rewards.model import RewardModel
from tpg.rollouts.engine import Engine, Prefix
from tpg.rollouts.sampling import GREEDY
from tpg.training.parallel.ranks import Ranks
from tpg.training.passes import Passes
from tpg.training.prompts import PromptStream
from tpg.training.scoring import Scoring, joined
from tpg.trajectories import Trajectories


@dataclass(frozen=True, eq=False)
class Greedy:
    """The answer to a request for greedy responses: for each trajectory its prompt's, and whether it was scored."""

    rewards_B: Tensor
    scored_B: Tensor
    generated_tokens: int
    told: Mapping[str, Told]
    """What reward terms tell of scoring them."""


@dataclass(frozen=True, eq=False)
class Continued:
    """The answer to a request for continuations."""

    values_K: Tensor
    """Mean reward of each prefix's scored continuations, NaN where none was scored."""
    generated_tokens: int
    unscored: int
    told: Mapping[str, Told] = field(default_factory=dict)
    """What reward terms tell of scoring them."""


@dataclass(frozen=True, eq=False)
class Answering:
    """Generates and scores responses that are not themselves trained on.

    Their rewards are charged for the divergence from the reference as those of the trained responses are, or a baseline
    would estimate another quantity than it is subtracted from.
    """

    engine: Engine
    stream: PromptStream
    reward_model: RewardModel
    method: Method
    passes: Passes
    on_step: Callable[[], None]
    ranks: Ranks

    def greedy(self, prefixes: Sequence[Prefix], iteration: int) -> Trajectories:
        """One greedy response to each prompt of this process's share."""
        alone = [replace(prefix, keys=prefix.keys[:1]) for prefix in self.ranks.own(prefixes)]
        return self.ranks.together(
            lambda: self.engine.generate(alone, GREEDY, version=iteration - 1, on_step=self.on_step)
        )

    def greedy_rewards(self, trajectories: Trajectories, greedy: Trajectories, iteration: int, state: State) -> Greedy:
        """Score every process's greedy responses."""
        scoring = Scoring((), self.stream.prompts.examples, self.passes.policy, self.reward_model, iteration)
        judged = joined(self.ranks.each(lambda: scoring.scored(greedy)))
        scored = judged.trajectories
        rewards_B, scored_B = self._rewards(scored, state)
        place = {identity: i for i, identity in enumerate(_identity(scored))}
        own_B = torch.tensor([place[identity] for identity in _identity(trajectories)])
        return Greedy(rewards_B[own_B], scored_B[own_B], int(scored.action_mask_BT.sum()), judged.told)

    def continued(self, trajectories: Trajectories, wanted: Continuations, iteration: int, state: State) -> Continued:
        """Continue every different prefix of a prompt `wanted.count` times, and score the complete responses.

        A process continues the responses that it has generated, which its engine may have retained.
        """
        places, owners = self._places(trajectories, wanted)
        if not places:
            return Continued(torch.zeros(0), 0, 0)
        shares = self._shares(trajectories)
        first = shares[self.ranks.rank].start
        prefixes = [
            self._prefix(trajectories, parent, position, first, wanted, iteration)
            for parent, position in places
            if parent in shares[self.ranks.rank]
        ]
        scoring = Scoring(prefixes, self.stream.prompts.examples, self.passes.policy, self.reward_model, iteration)
        made = self.ranks.together(
            lambda: self.engine.generate(
                prefixes,
                self.engine.options.sampling,
                version=iteration - 1,
                on_step=self.on_step,
                on_finished=scoring.finished,
            )
        )
        judged = joined(self.ranks.each(lambda: scoring.scored(made)))
        scored = judged.trajectories
        generated = int(scored.action_mask_BT.sum())
        # Complete responses count: what was given was chosen by the policy too.
        rewards_B, scored_B = self._rewards(scored.replace(action_mask_BT=scored.response_mask_BT), state)
        totals = torch.where(scored_B, rewards_B, 0.0).view(-1, wanted.count).sum(-1)
        counts = scored_B.view(-1, wanted.count).sum(-1)
        # They came share by share.
        order = [place for share in shares for place, (parent, _) in enumerate(places) if parent in share]
        values = torch.empty(len(places)).index_copy(0, torch.tensor(order), totals / counts)
        return Continued(values[torch.tensor(owners)], generated, int((~scored_B).sum()), judged.told)

    def _shares(self, trajectories: Trajectories) -> list[range]:
        """The trajectories that each process has generated: its share of the prompts, in order."""
        group = self.engine.options.responses_per_prompt
        shares = self.ranks.shares(len(trajectories) // group)
        return [range(share.start * group, share.stop * group) for share in shares]

    def _places(self, trajectories: Trajectories, wanted: Continuations) -> tuple[list[tuple[int, int]], list[int]]:
        """The (parent, position) of each different prefix, and for each wanted prefix which of them it is."""
        seen: dict[tuple[int, ...], int] = {}
        places: list[tuple[int, int]] = []
        owners = []
        groups = trajectories.group_B.tolist()
        for parent, position in zip(wanted.parent_K.tolist(), wanted.position_K.tolist(), strict=True):
            tokens = trajectories.response_ids_BT[parent, :position].tolist()
            identity = (groups[parent], *tokens)
            if identity not in seen:
                seen[identity] = len(places)
                places.append((parent, position))
            owners.append(seen[identity])
        return places, owners

    def _prefix(
        self, trajectories: Trajectories, parent: int, position: int, first: int, wanted: Continuations, iteration: int
    ) -> Prefix:
        row, draw = int(trajectories.row_B[parent]), int(trajectories.draw_B[parent])
        index = int(trajectories.response_index_B[parent])
        identity = (self.stream.seed, Purpose.CONTINUATION, iteration, row, draw, index, position)
        left = self.engine.options.max_response_tokens - position
        return Prefix(
            prompt_ids=self.stream.prompts.token_ids[row],
            max_tokens=left if wanted.max_tokens is None else min(left, wanted.max_tokens),
            keys=tuple(key(*identity, number) for number in range(wanted.count)),
            row=row,
            draw=draw,
            response_ids=tuple(trajectories.response_ids_BT[parent, :position].tolist()),
            parent=parent - first,
        )

    def _rewards(self, scored: Trajectories, state: State) -> tuple[Tensor, Tensor]:
        if self.method.moves_rewards:
            scored = self.passes.with_logprobs(scored, old=True)
        assert scored.scored_B is not None
        return self.method.rewards(scored, state), scored.scored_B


def _identity(trajectories: Trajectories) -> list[tuple[int, int]]:
    return list(zip(trajectories.row_B.tolist(), trajectories.draw_B.tolist(), strict=True))
