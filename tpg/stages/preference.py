"""Reward models from preferences."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tpg.rewards.learned.rendering import conversation_ids
from tpg.stages.calibration import accuracy, bradley_terry, calibration_error, reliability
from tpg.stages.classifier import RewardClassifier
from tpg.stages.module import Rows, StageModule
from tpg.stages.options import PreferenceStage, short_enough
from tpg.tasks.base import Example
from tpg.tasks.preferences import Pair

Ids = tuple[int, ...]


@dataclass(frozen=True)
class PairTokens:
    """Pairs as the tokens that a reward model scores, with their margins."""

    pairs: tuple[Pair, ...]
    chosen: tuple[Ids, ...]
    rejected: tuple[Ids, ...]
    margins: tuple[float, ...]
    overlong: int
    """How many were left out because they are too long."""

    def __len__(self) -> int:
        return len(self.pairs)

    def counted(self, rows: Sequence[int]) -> int:
        """Tokens of both conversations."""
        return sum(len(self.chosen[row]) + len(self.rejected[row]) for row in rows)

    def length(self, row: int) -> int:
        """Tokens of the longer of the two."""
        return max(len(self.chosen[row]), len(self.rejected[row]))

    def parts(self, rows: Sequence[int], tokens: int | None) -> list[Rows]:
        """Rows of similar lengths, in as few rectangles of two conversations a pair as fit into so many tokens."""
        parts: list[list[int]] = []
        for row in sorted(rows, key=self.length):  # the last is the longest
            if parts and (tokens is None or 2 * (len(parts[-1]) + 1) * self.length(row) <= tokens):
                parts[-1].append(row)
            else:
                parts.append([row])
        return [tuple(part) for part in parts]

    def cost(self, part: Sequence[int]) -> int:
        """Tokens of the rectangle of both conversations of each pair, padding included."""
        return 2 * len(part) * max(map(self.length, part))


def tokens_of(pairs: Sequence[Pair], tokenizer: Any, positions: int | None, stage: PreferenceStage) -> PairTokens:
    """All pairs that are short enough. Raises `UserError` for one that is not, unless it is to be left out."""
    # Reward terms see a prompt's text alone, be it of several turns: so it is read here.
    prompts = [Example(pair.prompt).text for pair in pairs]
    both = [
        tuple(tuple(conversation_ids(tokenizer, prompt, text)) for text in (pair.chosen, pair.rejected))
        for prompt, pair in zip(prompts, pairs, strict=True)
    ]
    lengths = [max(map(len, conversations)) for conversations in both]
    kept = short_enough(stage, positions, lengths, "pairs have a longer conversation", prompts.__getitem__)
    given = [pairs[row].margin for row in kept]
    return PairTokens(
        pairs=tuple(pairs[row] for row in kept),
        chosen=tuple(both[row][0] for row in kept),
        rejected=tuple(both[row][1] for row in kept),
        margins=tuple(stage.margin if margin is None else margin for margin in given),
        overlong=len(pairs) - len(kept),
    )


class PreferenceModule(StageModule[PairTokens]):
    """The Bradley-Terry loss of pairs, a mean over those of a step."""

    final_rewards: tuple[Tensor, Tensor]
    """Those of `held_out_rewards` when training is over."""

    def __init__(
        self, classifier: RewardClassifier, train: PairTokens, held_out: PairTokens, stage: PreferenceStage
    ) -> None:
        super().__init__(classifier, train, held_out, stage)
        self.classifier = classifier
        self.options = stage

    def parts(self, data: PairTokens, rows: Sequence[int]) -> list[Rows]:
        """Within the bound on tokens, padding included."""
        return data.parts(rows, self.memory.tokens)

    def cost(self, data: PairTokens, part: Rows) -> int:
        """Padding included."""
        return data.cost(part)

    def share(self, part: Rows, rows: Sequence[int]) -> tuple[Tensor, dict[str, float]]:
        """The part's losses over the pairs of the whole step; and its share of their accuracy and difference."""
        chosen_B, rejected_B = self._rewards(self.data, part)
        margins_B = chosen_B.new_tensor([self.data.margins[row] for row in part])
        losses_B = bradley_terry(chosen_B, rejected_B, margins_B, self.options.centering)
        differences_B, weight = (chosen_B - rejected_B).detach(), len(part) / len(rows)
        others = {
            "accuracy": weight * accuracy(differences_B),
            "reward_difference": weight * float(differences_B.mean()),
        }
        return losses_B.sum() / len(rows), others

    def _rewards(self, tokens: PairTokens, part: Rows) -> tuple[Tensor, Tensor]:
        rewards_2B = self.classifier([*(tokens.chosen[row] for row in part), *(tokens.rejected[row] for row in part)])
        chosen_B, rejected_B = rewards_2B.chunk(2)
        return chosen_B, rejected_B

    @torch.no_grad()
    def held_out_rewards(self) -> tuple[Tensor, Tensor]:
        """Those of the chosen and of the rejected responses that are held out, in their order, (B,) each."""
        tokens = self.held_out_data
        found_B2 = torch.zeros(len(tokens), 2, dtype=torch.float64)
        for part, rewards_B2 in self.over_held_out(
            lambda part: torch.stack(self._rewards(tokens, part), dim=-1).double().cpu()
        ):
            found_B2[list(part)] = rewards_B2
        return found_B2[:, 0], found_B2[:, 1]

    def measured(self) -> dict[str, float]:
        """Loss, accuracy, mean difference, calibration; mean and standard deviation of the rewards."""
        return self.measures_of(*self.held_out_rewards())

    def conclude(self) -> None:
        """Take the rewards that are written, in the precision of the weights."""
        self.final_rewards = self.held_out_rewards()

    def measures_of(self, chosen_B: Tensor, rejected_B: Tensor) -> dict[str, float]:
        """What `measured` gives for these rewards of the held-out pairs."""
        margins_B = torch.tensor(self.held_out_data.margins, dtype=torch.float64)
        differences_B = chosen_B - rejected_B
        mean, std = reward_statistics(chosen_B, rejected_B).values()
        return {
            "eval/loss": float(bradley_terry(chosen_B, rejected_B, margins_B, self.options.centering).mean()),
            "eval/accuracy": accuracy(differences_B),
            "eval/reward_difference": float(differences_B.mean()),
            "eval/calibration_error": calibration_error(reliability(differences_B, self.options.bins)),
            "eval/reward_mean": mean,
            "eval/reward_std": std,
        }


def reward_statistics(chosen_B: Tensor, rejected_B: Tensor) -> dict[str, float]:
    """Mean and standard deviation (n-1) of all rewards: the scale that they may be put on when a policy is trained."""
    rewards = [*chosen_B.tolist(), *rejected_B.tolist()]
    return {"mean": statistics.fmean(rewards), "std": statistics.stdev(rewards)}
