"""The beginning of a reference solution where every response fails."""

import math
import reprlib
from collections.abc import Collection
from dataclasses import replace

from pydantic import Field, field_validator

from tpg.component import component
from tpg.errors import UserError
from tpg.method import Method
from tpg.randomness import Purpose, key
from tpg.rollouts.engine import Prefix, RolloutOptions
from tpg.tasks.base import Example
from tpg.tasks.rendering import Rendered
from tpg.training.curriculum.base import Curriculum, Draws, More, Settled, check_column
from tpg.training.curriculum.groups import Groups


@component
class GHPO(Curriculum):
    """Gives a prompt whose responses all fail the first tokens of its reference solution, more where that fails too.

    The hint begins the response: the policy goes on from it, rewards see hint and continuation as one response, and
    the loss counts the continuation's tokens alone, which makes it on-policy for the prompt with its hint. The last
    hinted group takes the place of the group that failed. Evaluation gives no hints. (arXiv 2507.10628.)
    """

    solution_column: str = "answer"
    """The task's column that holds the reference solution, as the policy would write it."""
    levels: list[float] = Field(default=[0.25, 0.5, 0.75], min_length=1)
    """Shares of the solution's tokens, one after the other."""
    failure_reward: float = 0.0
    """A response fails when its reward is not above this."""

    @field_validator("levels")
    @classmethod
    def _rise(cls, levels: list[float]) -> list[float]:
        if any(not 0 < level < 1 for level in levels) or sorted(set(levels)) != levels:
            raise ValueError("should be rising shares between 0 and 1, e.g. [0.25,0.5,0.75]")
        return levels

    @property
    def known_ahead(self) -> bool:
        """No: the rewards decide who needs a hint."""
        return False

    @property
    def hint_levels(self) -> list[str]:
        """Percentages."""
        return [percent(level) for level in self.levels]

    def check(self, key: str, method: Method, rollout: RolloutOptions, columns: Collection[str]) -> None:
        """Refuse tasks without solutions, and values of prefixes: those of a hint are not the policy's."""
        super().check(key, method, rollout, columns)
        check_column(f"{key}.solution_column", self.solution_column, columns)
        if method.estimator.continues:
            raise UserError(
                f"{key}: estimator {type(method.estimator).__name__} continues the beginnings of responses, some of"
                " which GHPO gives as hints; use estimator=rloo, or curriculum=none"
            )

    def check_prompts(self, key: str, prompts: Rendered) -> None:
        """Raise `UserError` where a solution is no text."""
        for example in prompts.examples:
            if not isinstance(self._solution(example), str):
                raise UserError(
                    f"{key}.solution_column={self.solution_column}: the prompt {reprlib.repr(example.text)} has no text"
                    " there"
                )

    def settle(self, draws: Draws, first: Groups, more: More) -> Settled:
        """Generate anew for the groups that fail, level by level."""
        groups, level_of, tokens = first, [0.0] * len(first), first.tokens
        for number, level in enumerate(self.levels):
            failed = [place for place, fails in enumerate(self._failed(groups)) if fails]
            hinted = {place: self._hinted(draws, first.prefixes[place], number) for place in failed}
            given = {p: prefix for p, prefix in hinted.items() if prefix and _longer(prefix, groups.prefixes[p])}
            if not given:
                continue
            generated = more(list(given.values()))
            tokens += generated.tokens
            own = dict(zip(given, range(len(groups), len(groups) + len(given)), strict=True))
            groups = groups.plus(generated).take([own.get(place, place) for place in range(len(groups))])
            for place in given:
                level_of[place] = level
        failed_first = self._failed(first)
        without = sum(fails and not level for fails, level in zip(failed_first, level_of, strict=True))
        metrics = {
            "curriculum/unhinted_reward": float(first.rewards_NG[first.scored_NG].mean()),
            "curriculum/failed_groups": float(sum(failed_first)),
            "curriculum/without_hint": float(without),
            **{f"curriculum/hinted/{percent(level)}": level_of.count(level) / len(level_of) for level in self.levels},
        }
        return Settled(groups, first, tokens - groups.tokens, metrics)

    def _failed(self, groups: Groups) -> list[bool]:
        """Of each group whether its scored responses all fail; not where there is none."""
        succeeds_N = ((groups.rewards_NG > self.failure_reward) & groups.scored_NG).any(-1)
        failed: list[bool] = (~succeeds_N & groups.scored_NG.any(-1)).tolist()
        return failed

    def _hinted(self, draws: Draws, prefix: Prefix, number: int) -> Prefix | None:
        """The prompt with the hint of a level; None where the solution or the limit on tokens leaves no room for it."""
        solution = self._solution(draws.stream.prompts.examples[prefix.row])
        token_ids = draws.policy.tokenizer(solution, add_special_tokens=False).input_ids
        length = min(math.ceil(self.levels[number] * len(token_ids)), len(token_ids) - 1)
        left = draws.rollout.max_response_tokens - length
        if length < 1 or left < 1:
            return None
        identity = (draws.stream.seed, Purpose.TRAINING_ROLLOUT, draws.iteration, prefix.row, prefix.draw)
        keys = tuple(key(*identity, response, number) for response in range(len(prefix.keys)))
        return replace(prefix, response_ids=tuple(token_ids[:length]), max_tokens=left, keys=keys)

    def _solution(self, example: Example) -> str:
        answers = {"answer": example.answer, **example.columns}
        solution: str = answers[self.solution_column]
        return solution


def percent(level: float) -> str:
    """A share as metrics name it: 0.25 as 25."""
    return f"{100 * level:g}"


def _longer(prefix: Prefix, other: Prefix) -> bool:
    """Whether a hint says more than the one that failed; short solutions have the same for several levels."""
    return len(prefix.response_ids) > len(other.response_ids)
