"""Which prompts an iteration trains on."""

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
        size = len(self.prompts.token_ids)
        prefixes = []
        for place in range((iteration - 1) * rollout.prompts, iteration * rollout.prompts):
            draw, position = divmod(place, size)
            row = _order(size, self.seed, draw)[position]
            identity = (self.seed, Purpose.TRAINING_ROLLOUT, iteration, row, draw)
            prefixes.append(self._prefix(row, draw, rollout.responses_per_prompt, identity, rollout))
        return prefixes

    def held_out(self, count: int, rollout: RolloutOptions) -> list[Prefix]:
        """Every prompt in order with `count` responses; the same random numbers whenever it is asked."""
        rows = range(len(self.prompts.token_ids))
        return [
            self._prefix(row, 0, count, (self.seed, Purpose.EVALUATION_ROLLOUT, 0, row, 0), rollout) for row in rows
        ]

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
