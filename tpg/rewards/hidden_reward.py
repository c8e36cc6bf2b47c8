"""The hidden truth of the task `hidden_reward`: a reward for every letter, summed over the response."""

import random
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cache
from typing import Any

from tpg.component import component
from tpg.rewards.base import RewardTerm, Sample

ALPHABET = "abcdefghijklmnopqrstuvwxyz"
WASTE = -1.0
"""What a character earns that is no letter of the language, and every one beyond the length that counts."""

Table = tuple[tuple[tuple[float, ...], ...], ...]
"""Rewards by class of the prompt, previous letter (the last row: none) and letter."""


@dataclass(frozen=True)
class Truth:
    """A language of `letters` letters with prompts of `classes` classes, the first `length` letters of whose responses
    earn rewards: standard normal numbers that are a function of the seed, each the sum of what the letter is worth
    in the class and what it is worth after the letter before it.
    """

    seed: int
    letters: int
    classes: int
    length: int

    @property
    def alphabet(self) -> str:
        """Its letters."""
        return ALPHABET[: self.letters]

    @property
    def table(self) -> Table:
        """Every letter's reward."""
        return _table(self.seed, self.letters, self.classes)

    def class_of(self, prompt: str) -> int:
        """The class, which is that of the prompt's first letter."""
        return self.alphabet.index(prompt[0]) % self.classes

    def token_rewards(self, prompt: str, response: str) -> list[float]:
        """What each character of the response earns; the end of the response earns nothing."""
        rows, earned, previous = self.table[self.class_of(prompt)], [], self.letters
        for place, character in enumerate(response):
            letter = self.alphabet.find(character)
            earned.append(rows[previous][letter] if letter >= 0 and place < self.length else WASTE)
            previous = letter if letter >= 0 else self.letters
        return earned

    def best(self, prompt: str) -> tuple[float, str]:
        """The highest return of any response, and the shortest response that has it (by dynamic programming)."""
        rows = self.table[self.class_of(prompt)]
        # By last letter: the highest return of a response of so many letters, and that response.
        ends = {letter: (rows[self.letters][letter], self.alphabet[letter]) for letter in range(self.letters)}
        found = max([(0.0, ""), *ends.values()], key=_by_return)
        for _ in range(1, self.length):
            ends = {
                letter: max(
                    (
                        (value + rows[last][letter], text + self.alphabet[letter])
                        for last, (value, text) in ends.items()
                    ),
                    key=_by_return,
                )
                for letter in range(self.letters)
            }
            found = max([found, *ends.values()], key=_by_return)
        return found

    def column(self) -> dict[str, int]:
        """What an example tells of it."""
        return asdict(self)

    @classmethod
    def of(cls, column: Mapping[str, Any]) -> "Truth":
        """Of an example's column."""
        return cls(**column)


def _by_return(each: tuple[float, str]) -> float:
    return each[0]


@cache
def _table(seed: int, letters: int, classes: int) -> Table:
    rng = random.Random(f"{seed}-hidden-reward-{letters}-{classes}")
    of_class, of_previous = (
        [[rng.gauss(0.0, 0.5**0.5) for _ in range(letters)] for _ in range(rows)] for rows in (classes, letters + 1)
    )
    return tuple(
        tuple(tuple(one + other for one, other in zip(row, column, strict=True)) for column in of_previous)
        for row in of_class
    )


@component
class HiddenReward(RewardTerm):
    """The true return of a response to a prompt of the task `hidden_reward`: what its letters earn, in sum."""

    def required_columns(self) -> frozenset[str]:
        """Name the truth."""
        return frozenset({"truth"})

    def score(self, sample: Sample) -> float:
        """Sum what `Truth.token_rewards` gives."""
        return sum(Truth.of(sample.columns["truth"]).token_rewards(sample.prompt, sample.response))
