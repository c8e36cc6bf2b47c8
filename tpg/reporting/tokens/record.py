"""What a run recorded of single tokens: groups of responses, read back, picked from and put in words."""

import json
import math
import statistics
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from tpg.errors import UserError

Measure = Literal["weight", "change"]
"""What colours a token: its weight in the update, or how far the update moved its log-probability (nats)."""


@dataclass(frozen=True)
class Response:
    """A response token by token; the four sequences are as long as each other."""

    number: int
    """1, 2, ... within its group."""
    tokens: tuple[str, ...]
    logprobs: tuple[float, ...]
    """The engine's, nats."""
    weights: tuple[float, ...]
    changes: tuple[float, ...]
    """The trainer's log-probability after the iteration's last update less the one before its first, nats."""
    reward: float | None
    """None: unscored."""
    terms: Mapping[str, float | None]
    """Each reward term before its weight, None where it failed."""
    kept: bool
    """Whether the update counted it."""
    truncated: bool

    def values(self, measure: Measure) -> tuple[float, ...]:
        """What each token is coloured by."""
        return self.weights if measure == "weight" else self.changes

    @property
    def largest_weight(self) -> float:
        """The size of its largest weight; 0 without a token."""
        return largest(self.weights)


@dataclass(frozen=True)
class Group:
    """The responses to one prompt in one iteration, and which of them are to be shown."""

    iteration: int
    number: int
    """1, 2, ... among the prompts that the iteration recorded."""
    of: int
    """How many it recorded."""
    row: int
    """The prompt's row in the task's data."""
    draw: int
    """How often that row had been drawn before."""
    prompt: str
    answer: str | None
    responses: tuple[Response, ...]
    shown: tuple[Response, ...]

    @property
    def rewards(self) -> list[float]:
        """Those of the scored responses."""
        return [response.reward for response in self.responses if response.reward is not None]

    @property
    def std(self) -> float:
        """Sample standard deviation of the rewards; 0 where there are fewer than two."""
        return statistics.stdev(self.rewards) if len(self.rewards) > 1 else 0.0

    @property
    def zero_variance(self) -> bool:
        """Whether the rewards, two or more, are all equal."""
        return len(self.rewards) > 1 and max(self.rewards) == min(self.rewards)

    def showing(self, chosen: Callable[[Response], bool]) -> "Group":
        """The group with only some of its responses shown."""
        return replace(self, shown=tuple(response for response in self.shown if chosen(response)))

    def showing_reward(self, reward: float) -> "Group":
        """The group with only the responses of this reward shown."""
        return self.showing(lambda response: response.reward == reward)


def recorded(run: Path) -> dict[int, Path]:
    """The file of every iteration whose tokens a run recorded, in order."""
    files = sorted((run / "tokens").glob("iteration-*.jsonl"))
    return {int(file.stem.removeprefix("iteration-")): file for file in files}


def read_groups(file: Path) -> list[Group]:
    """An iteration's groups as they were recorded. Raises `UserError` for a file that is no such record."""
    try:
        lines = [json.loads(line) for line in file.read_text(encoding="utf-8").split("\n") if line]
        members: dict[tuple[int, int], list[dict[str, Any]]] = {}
        for line in lines:
            members.setdefault((line["row"], line["draw"]), []).append(line)
        return [_group(number, len(members), own) for number, own in enumerate(members.values(), start=1)]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{file}: is no record of tokens: {type(error).__name__}: {error}") from None


def _group(number: int, of: int, lines: Sequence[Mapping[str, Any]]) -> Group:
    first = lines[0]
    responses = tuple(
        Response(
            number=place,
            **{name: tuple(line[name]) for name in ("tokens", "logprobs", "weights", "changes")},
            reward=line["reward"],
            terms=line["rewards"],
            kept=line["kept"],
            truncated=line["truncated"],
        )
        for place, line in enumerate(lines, start=1)
    )
    identity = {name: first[name] for name in ("iteration", "row", "draw", "prompt", "answer")}
    return Group(number=number, of=of, **identity, responses=responses, shown=responses)


def highest(groups: Sequence[Group]) -> list[Group]:
    """The best responses of each group, the group with the highest reward first."""
    scored = [group for group in groups if group.rewards]
    best = [group.showing_reward(max(group.rewards)) for group in scored]
    return sorted(best, key=lambda group: -max(group.rewards))


def lowest(groups: Sequence[Group]) -> list[Group]:
    """The worst responses of each group, the group with the lowest reward first."""
    scored = [group for group in groups if group.rewards]
    worst = [group.showing_reward(min(group.rewards)) for group in scored]
    return sorted(worst, key=lambda group: min(group.rewards))


def zero_variance(groups: Sequence[Group]) -> list[Group]:
    """Groups whose rewards are all equal."""
    return [group for group in groups if group.zero_variance]


def truncated(groups: Sequence[Group]) -> list[Group]:
    """Responses that were cut at the limit."""
    return _with_any(group.showing(lambda response: response.truncated) for group in groups)


def unscored(groups: Sequence[Group]) -> list[Group]:
    """Responses without a reward."""
    return _with_any(group.showing(lambda response: response.reward is None) for group in groups)


def biggest_weights(groups: Sequence[Group]) -> list[Group]:
    """Groups and their responses by their largest weight, the largest first; those without any are left out."""
    ordered = [
        replace(group, shown=tuple(sorted(group.shown, key=lambda response: -response.largest_weight)))
        for group in _with_any(group.showing(lambda response: response.largest_weight > 0) for group in groups)
    ]
    return sorted(ordered, key=lambda group: -group.shown[0].largest_weight)


def _with_any(groups: Any) -> list[Group]:
    return [group for group in groups if group.shown]


Filter = Literal["highest", "lowest", "zero_variance", "truncated", "unscored", "biggest_weights"]
FILTERS: dict[Filter, Callable[[Sequence[Group]], list[Group]]] = {
    "highest": highest,
    "lowest": lowest,
    "zero_variance": zero_variance,
    "truncated": truncated,
    "unscored": unscored,
    "biggest_weights": biggest_weights,
}


def scale(groups: Sequence[Group], measure: Measure) -> float:
    """The largest size of what the groups' tokens are coloured by, which has the strongest colour."""
    return largest([value for group in groups for response in group.responses for value in response.values(measure)])


def largest(values: Sequence[float]) -> float:
    """The largest size among the finite values; 0 without any."""
    return max((abs(value) for value in values if math.isfinite(value)), default=0.0)


def headline(group: Group) -> str:
    """A group in one line."""
    missing = len(group.responses) - len(group.rewards)
    reward = f"reward {statistics.fmean(group.rewards):.3f} ± {group.std:.3f}" if group.rewards else "no reward"
    parts = [
        counted(len(group.responses), "response"),
        reward,
        *(["zero variance"] if group.zero_variance else []),
        *([f"{missing} unscored"] if missing else []),
        *([f"{len(group.shown)} shown"] if len(group.shown) < len(group.responses) else []),
    ]
    place = f"prompt {group.number} of {group.of} (row {group.row}, draw {group.draw})"
    return f"iteration {group.iteration}, {place}: {', '.join(parts)}"


def caption(response: Response) -> str:
    """A response but for its tokens, in one line."""
    reward = "unscored" if response.reward is None else f"reward {response.reward:.3f}"
    terms = ", ".join(f"{name} {_three(value)}" for name, value in response.terms.items())
    parts = [
        reward + (f" ({terms})" if terms else ""),
        _weights(response.weights),
        f"log-prob {sum(response.logprobs):.3f}, changed by {signed(sum(response.changes))}",
        counted(len(response.tokens), "token") + (", truncated" if response.truncated else ""),
        *([] if response.kept else ["out of the update"]),
    ]
    return f"response {response.number}: {'; '.join(parts)}"


def _three(value: float | None) -> str:
    return "failed" if value is None else f"{value:.3f}"


def _weights(weights: Sequence[float]) -> str:
    if not weights:
        return "no weight"
    low, high = min(weights), max(weights)
    if low == high:
        return f"weight {signed(low)} on every token"
    return f"weights {signed(low)} to {signed(high)}, mean {signed(statistics.fmean(weights))}"


def counted(number: int, noun: str) -> str:
    """So many of something."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def signed(value: float) -> str:
    """Three digits and a sign; zero has none."""
    return "0" if value == 0 else f"{value:+.3g}"


NAMED = {"\n": "⏎", "\t": "⇥", "\r": "␍"}


def visible(text: str, *, breaks: bool = True) -> str:
    """The text with marks for what has no shape of its own; a line also breaks after its mark if `breaks`.

    Control and format characters lose their effect, so that a response cannot steer a terminal or a page.
    """
    return "".join(_shape(character) + ("\n" if breaks and character == "\n" else "") for character in text)


def _shape(character: str) -> str:
    if character in NAMED:
        return NAMED[character]
    category = unicodedata.category(character)
    if category[0] != "C" and category not in ("Zl", "Zp"):
        return character
    return chr(0x2400 + ord(character)) if ord(character) < 32 else f"\\u{ord(character):04x}"
