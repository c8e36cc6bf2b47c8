"""Other prompts in place of those whose responses all got one reward."""

from collections.abc import Collection, Iterator

import torch
from pydantic import Field

from tpg.component import component
from tpg.errors import UserError
from tpg.estimators.base import Answers, Estimator
from tpg.method import Method
from tpg.rollouts.engine import Prefix, RolloutOptions
from tpg.training.curriculum.base import Curriculum, Draws, More, Settled
from tpg.training.curriculum.groups import Groups
from tpg.trajectories import FinishReason, Trajectories


@component
class DynamicSampling(Curriculum):
    """Leaves out groups of equal rewards, and draws other prompts until there are enough mixed ones.

    A prompt is never drawn again in the iteration that left it out: that would prefer rare outcomes. The first mixed
    groups in the order of drawing are learned from, further ones are given up: later they would be off-policy. Where
    `max_rounds` or the prompts run out, groups of equal rewards fill the rest; they weigh nothing. (DAPO, arXiv
    2503.14476.)
    """

    max_rounds: int = Field(default=10, ge=1)
    """Rollouts of `rollout.prompts` prompts an iteration may take."""

    @property
    def known_ahead(self) -> bool:
        """No: how far the iteration before has come decides."""
        return False

    def check(self, key: str, method: Method, rollout: RolloutOptions, columns: Collection[str]) -> None:
        """Refuse estimators for which a group of equal rewards has a gradient, or there is no group."""
        super().check(key, method, rollout, columns)
        name = type(method.estimator).__name__
        if rollout.responses_per_prompt < 2:
            raise UserError(
                f"{key}: DynamicSampling compares the responses to a prompt; use rollout.responses_per_prompt=2 or more"
            )
        if not silent_where_equal(method.estimator, rollout.responses_per_prompt):
            raise UserError(
                f"{key}: DynamicSampling leaves out groups of equal rewards, which have a gradient with estimator"
                f" {name}; use estimator=rloo, or curriculum=none"
            )

    def warnings(self, method: Method) -> Iterator[str]:
        """Tell of gradients other than the rewards'."""
        if method.kl.needs_reference or method.entropy_coefficient:
            yield (
                "curriculum: DynamicSampling leaves out groups of equal rewards, whose KL and entropy terms have a"
                " gradient all the same: these act on prompts of mixed rewards alone"
            )

    def prompts(self, draws: Draws) -> list[Prefix]:
        """Go on where the iteration before has stopped."""
        place = _place(draws)
        return draws.stream.at(range(place, place + draws.rollout.prompts), draws.iteration, draws.rollout)

    def settle(self, draws: Draws, first: Groups, more: More) -> Settled:
        """Draw others until there are enough."""
        wanted = draws.rollout.prompts
        drawn, rounds, place = first, 1, _place(draws) + wanted
        while int(drawn.mixed_N.sum()) < wanted and rounds < self.max_rounds:
            places, place = _others(draws, place, {prefix.row for prefix in drawn.prefixes})
            if not places:
                break
            drawn = drawn.plus(more(draws.stream.at(places, draws.iteration, draws.rollout)))
            rounds += 1
        mixed = drawn.mixed_N.nonzero().flatten().tolist()
        learned = chosen(drawn.mixed_N.tolist(), wanted)
        groups = drawn.take(learned)
        metrics = {
            "curriculum/rounds": float(rounds),
            "curriculum/prompts_drawn": float(len(drawn)),
            "curriculum/dropped_groups": float(len(drawn) - max(wanted, len(mixed))),
            "curriculum/surplus_groups": float(max(0, len(mixed) - wanted)),
            "curriculum/missing_groups": float(max(0, wanted - len(mixed))),
        }
        return Settled(groups, drawn, drawn.tokens - groups.tokens, metrics, {"place": place})


def chosen(mixed: list[bool], wanted: int) -> list[int]:
    """The places of the first `wanted` mixed groups; where there are fewer, others fill the rest, the first first."""
    places = sorted(range(len(mixed)), key=lambda place: not mixed[place])
    return sorted(places[:wanted])


def _place(draws: Draws) -> int:
    """Where in the order of prompts the iteration begins."""
    return int(draws.state.get("place", (draws.iteration - 1) * draws.rollout.prompts))


def _others(draws: Draws, place: int, seen: set[int]) -> tuple[list[int], int]:
    """Places, from this one on, of a round of prompts of none of the rows seen; and where they end."""
    left = min(draws.rollout.prompts, len(draws.stream.prompts.token_ids) - len(seen))
    places: list[int] = []
    rows = set(seen)
    while len(places) < left:
        row = draws.stream.row_at(place)
        if row not in rows:
            rows.add(row)
            places.append(place)
        place += 1
    return places, place


def silent_where_equal(estimator: Estimator, group: int) -> bool:
    """Whether an estimator gives every response of a group of equal rewards the weight 0: it is tried."""
    rewards_NG = torch.zeros(3, group)
    rewards_NG[0], rewards_NG[1, 0] = 1.0, 1.0  # all solved, one solved, none solved
    count, tokens = rewards_NG.numel(), 2
    exists_BT = torch.ones(count, tokens, dtype=torch.bool)
    zeros_B = torch.zeros(count, dtype=torch.long)
    statistic_BT = torch.linspace(0.2, 0.8, count * tokens).view(count, tokens)
    tried = Trajectories(
        prompt_ids_BP=zeros_B[:, None],
        prompt_mask_BP=exists_BT[:, :1],
        response_ids_BT=torch.zeros(count, tokens, dtype=torch.long),
        response_mask_BT=exists_BT,
        action_mask_BT=exists_BT,
        rollout_logprobs_BT=-statistic_BT,
        row_B=torch.arange(3).repeat_interleave(group),
        draw_B=zeros_B,
        response_index_B=torch.arange(group).repeat(3),
        finish_reason_B=torch.full((count,), int(FinishReason.STOP)),
        parent_B=zeros_B - 1,
        position_B=zeros_B,
        version_B=zeros_B,
        rewards_B=rewards_NG.flatten(),
        scored_B=exists_BT[:, 0],
        old_logprobs_BT=-statistic_BT,
        entropy_BT=statistic_BT,
        sum_squared_probs_BT=statistic_BT,
        score_norms_B=statistic_BT.sum(-1),
        uniforms_BT=statistic_BT.double(),
    )
    if estimator.needs_critic or estimator.continues or estimator.requests(tried).greedy:
        return False  # what they compare with is not of the group's rewards alone
    weights_NGT = estimator.weights(tried, Answers(state=estimator.initial_state())).view(3, group, tokens)
    return not bool(weights_NGT[[0, 2]].any())
