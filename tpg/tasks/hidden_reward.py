"""A made language with a hidden reward for every letter: preferences whose truth is known."""

import itertools
import math
import random
from collections.abc import Iterator

from pydantic import Field

from tpg.component import component
from tpg.errors import UserError
from tpg.rewards.hidden_reward import ALPHABET, Truth
from tpg.tasks.base import Example, Examples, Preference, Task


@component
class HiddenReward(Task):
    """Words of random letters, to be answered with letters that earn a hidden reward each (`Truth`).

    The truth and the held-out prompts are functions of `truth_seed`; the seed of a run decides on the rest. Raises
    `UserError` when there are fewer words than prompts asked for.
    """

    truth_seed: int = Field(default=0, ge=0)
    letters: int = Field(default=8, ge=2, le=len(ALPHABET))
    classes: int = Field(default=4, ge=1)
    length: int = Field(default=8, ge=1)
    """Letters of a response that earn something; each further one costs 1."""
    prompt_letters: int = Field(default=5, ge=1, le=12)
    skill: float = Field(default=1.0, ge=0, le=20)
    """Of the behaviour that demonstrations and preferences show: it draws letters by softmax(skill x reward)."""
    decisiveness: float = Field(default=1.0, gt=0, le=100)
    """Of who states preferences (Bradley-Terry): P(first preferred) = sigmoid(decisiveness x difference of returns)."""
    train_size: int = Field(default=2048, ge=1)
    evaluation_size: int = Field(default=256, ge=1)

    def __post_init__(self) -> None:
        if self.classes > self.letters:
            raise UserError(
                f"task.classes={self.classes}: a prompt's class is told by its first letter, and there are"
                f" task.letters={self.letters}; lower task.classes"
            )
        if self.train_size + self.evaluation_size > self._words:
            raise UserError(
                f"task.prompt_letters={self.prompt_letters} gives {self._words} distinct prompts, but task.train_size="
                f"{self.train_size} and task.evaluation_size={self.evaluation_size} ask for"
                f" {self.train_size + self.evaluation_size}: raise task.prompt_letters or lower the sizes"
            )

    @property
    def truth(self) -> Truth:
        """What each letter earns."""
        return Truth(self.truth_seed, self.letters, self.classes, self.length)

    def columns(self) -> frozenset[str]:
        """Offer the truth."""
        return frozenset({"truth"})

    def load(self, seed: int) -> Examples:
        """Distinct words; those held out are the same with every seed."""
        held_out = self._held_out()
        rng = random.Random(f"{seed}-hidden-reward-prompts")
        drawn = rng.sample(range(self._words), self.train_size + self.evaluation_size)
        train = [number for number in drawn if number not in held_out][: self.train_size]
        column = {"truth": self.truth.column()}
        of = [tuple(Example(self._prompt(number), columns=column) for number in part) for part in (train, held_out)]
        return Examples(train=of[0], evaluation=of[1])

    def demonstrations(self, seed: int, count: int) -> tuple[tuple[str, str], ...]:
        """`count` prompts with what the behaviour answers; a prompt may come twice."""
        numbers = self._numbers("demonstrations", seed)
        drawn = ((self._prompt(number), rng) for (number, rng), _ in zip(numbers, range(count), strict=False))
        return tuple((prompt, self.behaviour(prompt, rng)) for prompt, rng in drawn)

    def preferences(self, seed: int, count: int) -> tuple[Preference, ...]:
        """`count` pairs of different answers of the behaviour; a prompt may come twice."""
        numbers = self._numbers("preferences", seed)
        return tuple(
            self._preference(self._prompt(number), rng) for (number, rng), _ in zip(numbers, range(count), strict=False)
        )

    def behaviour(self, prompt: str, rng: random.Random, skill: float | None = None) -> str:
        """An answer of half the length that counts, or more letters up to the whole, by the skill or another."""
        truth, skill = self.truth, self.skill if skill is None else skill
        rows, previous, answer = truth.table[truth.class_of(prompt)], truth.letters, ""
        for _ in range(rng.randint((truth.length + 1) // 2, truth.length)):
            odds = [math.exp(skill * reward) for reward in rows[previous]]
            previous = rng.choices(range(truth.letters), odds)[0]
            answer += truth.alphabet[previous]
        return answer

    def _preference(self, prompt: str, rng: random.Random) -> Preference:
        first = second = self.behaviour(prompt, rng)
        tries = 0
        while second == first:
            # Great skill may have but one answer.
            second, tries = self.behaviour(prompt, rng, None if tries < 100 else 0.0), tries + 1
        one, other = (sum(self.truth.token_rewards(prompt, answer)) for answer in (first, second))
        preferred = rng.random() < 0.5 + 0.5 * math.tanh(0.5 * self.decisiveness * (one - other))
        return Preference(prompt, *((first, second) if preferred else (second, first)))

    @property
    def _words(self) -> int:
        return int(self.letters**self.prompt_letters)

    def _held_out(self) -> dict[int, None]:
        """The numbers of the words held out, in their order."""
        rng = random.Random(f"{self.truth_seed}-hidden-reward-held-out")
        return dict.fromkeys(rng.sample(range(self._words), self.evaluation_size))

    def _numbers(self, purpose: str, seed: int) -> Iterator[tuple[int, random.Random]]:
        """Words that are not held out, each with the random numbers of its row."""
        held_out = self._held_out()
        for row in itertools.count():
            rng = random.Random(f"{seed}-hidden-reward-{purpose}-{row}")
            number = rng.randrange(self._words)
            while number in held_out:
                number = rng.randrange(self._words)
            yield number, rng

    def _prompt(self, number: int) -> str:
        """The word of this number, and a colon."""
        digits = (number // self.letters**place % self.letters for place in reversed(range(self.prompt_letters)))
        return "".join(ALPHABET[digit] for digit in digits) + ":"
