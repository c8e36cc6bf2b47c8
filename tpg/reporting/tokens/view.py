"""Groups of responses in a terminal, their tokens coloured by weight or by the change of their log-probability."""

import math
from collections.abc import Iterator

from rich.console import Group as Lines
from rich.console import RenderableType
from rich.style import Style
from rich.table import Table
from rich.text import Text

from tpg.reporting.tokens.record import Group, Measure, Response, caption, headline, signed, visible

LEVELS = 5
NAMES: dict[Measure, str] = {"weight": "weight", "change": "log-prob change"}
GREY, RED, GREEN = (105, 105, 105), (190, 30, 30), (10, 125, 55)
"""A colour runs from grey, where a value is small, so that white letters can be read on any terminal's ground."""


def level(value: float, largest: float) -> int:
    """-5 to 5 by size and sign; 0 for zero and for what is no finite number."""
    if value == 0 or largest <= 0 or not math.isfinite(value):
        return 0
    size = min(LEVELS, math.ceil(LEVELS * abs(value) / largest))
    return size if value > 0 else -size


def level_style(number: int) -> Style:
    """The ground of a token of level -5 to 5."""
    if number == 0:
        return Style.null()
    far = GREEN if number > 0 else RED
    share = abs(number) / LEVELS
    red, green, blue = (round(near + (end - near) * share) for near, end in zip(GREY, far, strict=True))
    return Style.parse(f"rgb(255,255,255) on rgb({red},{green},{blue})")


def legend(measure: Measure, largest: float, *, colours: bool) -> Text:
    """How to read the colours, or the numbers that stand in for them."""
    name = NAMES[measure]
    if not colours:
        return Text(f"⟨...⟩ tells the {name} of the tokens after it")
    text = Text(f"{name} {signed(-largest)} ")
    for number in range(-LEVELS, LEVELS + 1):
        text.append("  ", level_style(number))
    return text.append(f" {signed(largest)}")


def coloured(response: Response, measure: Measure, largest: float, *, colours: bool) -> Text:
    """A response's tokens as running text; without colours a value stands before every run of tokens that has it."""
    text, before = Text(overflow="fold"), None
    for token, value in zip(response.tokens, response.values(measure), strict=True):
        shown = signed(value)
        if not colours and shown != before:
            text.append(f"⟨{shown}⟩")
        before = shown
        text.append(visible(token) or "∅", level_style(level(value, largest)) if colours else None)
    return text


def tokens_table(response: Response, measure: Measure, largest: float, *, colours: bool) -> Table:
    """A line a token."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("#", justify="right")
    table.add_column("token", overflow="fold")
    for name in ("weight", "log-prob", "change"):
        table.add_column(name, justify="right", no_wrap=True)
    columns = zip(response.tokens, response.weights, response.logprobs, response.changes, strict=True)
    for place, (token, weight, logprob, change) in enumerate(columns, start=1):
        style = level_style(level(weight if measure == "weight" else change, largest)) if colours else Style.null()
        shown = Text(visible(token, breaks=False).replace(" ", "·") or "∅", style)
        table.add_row(str(place), shown, signed(weight), f"{logprob:.4f}", signed(change))
    return table


def group_view(group: Group, measure: Measure, largest: float, *, table: bool, colours: bool) -> RenderableType:
    """A headline, the prompt, and every response that is shown."""
    return Lines(*_lines(group, measure, largest, table=table, colours=colours))


def _lines(group: Group, measure: Measure, largest: float, *, table: bool, colours: bool) -> Iterator[RenderableType]:
    yield Text(headline(group), "bold")
    yield Text(visible(group.prompt), overflow="fold")
    if group.answer is not None:
        yield Text(f"answer: {visible(group.answer)}", overflow="fold")
    tokens = tokens_table if table else coloured
    for response in group.shown:
        yield Text()
        yield Text(caption(response), "bold cyan")
        yield tokens(response, measure, largest, colours=colours)
    yield Text()
