"""Which prompts an iteration trains on."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache

from tpg.randomness import Purpose, key, permutation
from tpg.rollouts.engine import Prefix, RolloutOptions
from tpg.tasks.rendering import Rendered


@dataclass(frozen=True)
class PromptStream:
    """Prompts in a random order, each once before any comes again; a function of seed and iteration alone."""

    prompts: Rendered
    seed: int

    def draw(self, iteration: int, rollout: RolloutOptions) -> list[Prefix]:
        """The prompts of iteration 1, 2, ..., each with the random keys of its responses."""
        return self.at(range((iteration - 1) * rollout.prompts, iteration * rollout.prompts), iteration, rollout)

    def at(self, places: Iterable[int], iteration: int, rollout: RolloutOptions) -> list[Prefix]:
        """The prompts that stand at places 0, 1, ... of that order, with the keys of an iteration's responses."""
        drawn = [(self.row_at(place), place // len(self.prompts.token_ids)) for place in places]
        return [self._training_prefix(row, draw, iteration, rollout) for row, draw in drawn]

    def row_at(self, place: int) -> int:
        """The row of the prompt at a place."""
        size = len(self.prompts.token_ids)
        draw, position = divmod(place, size)
        return _order(size, self.seed, draw)[position]

    def of_rows(self, rows: Iterable[int], iteration: int, rollout: RolloutOptions) -> list[Prefix]:
        """The prompts of rows that something else has chosen; one that comes again is a group of its own."""
        seen: Counter[int] = Counter()
        prefixes = []
        for row in rows:
            prefixes.append(self._training_prefix(row, seen[row], iteration, rollout))
            seen[row] += 1
        return prefixes

    def held_out(self, count: int, rollout: RolloutOptions) -> list[Prefix]:
        """Every prompt in order with `count` responses; the same random numbers whenever it is asked."""
        rows = range(len(self.prompts.token_ids))
        return [
            self._prefix(row, 0, count, (self.seed, Purpose.EVALUATION_ROLLOUT, 0, row, 0), rollout) for row in rows
        ]

    def _training_prefix(self, row: int, draw: int, iteration: int, rollout: RolloutOptions) -> Prefix:
        identity = (self.seed, Purpose.TRAINING_ROLLOUT, iteration, row, draw)
        return self._prefix(row, draw, rollout.responses_per_prompt, identity, rollout)

    def _prefix(self, row: int, draw: int, count: int, identity: tuple[int, ...], rollout: RolloutOptions) -> Prefix:
        return Prefix(
            prompt_ids=self.prompts.token_ids[row],
            max_tokens=rollout.max_response_tokens,
            keys=tuple(key(*identity, response) for response in range(count)),
            row=row,
            draw=draw,
        )


@lru_cache(maxsize=2)
def _order(size: int, seed: int, draw: int) -> list[int]:
    return permutation(size, seed, Purpose.PROMPT_ORDER, draw)
