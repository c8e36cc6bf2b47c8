"""Groups of responses as a piece of a page: a token's ground is its weight, the line below it what the update did."""

import math
from collections.abc import Sequence
from html import escape

from tpg.reporting.tokens.record import Group, Response, caption, headline, scale, signed, visible

RED, GREEN = "220,38,38", "22,163,74"
BOX = (
    "margin:.25em 0 1em;white-space:pre-wrap;overflow-wrap:anywhere;font-family:ui-monospace,monospace;line-height:1.7"
)


def groups_html(groups: Sequence[Group]) -> str:
    """A fragment with its styles inline, no script, and colours that let the page's own ground through.

    Text and ground are the page's, so that it is readable in the light and in the dark. All text is escaped.
    """
    weight, change = scale(groups, "weight"), scale(groups, "change")
    return _legend(weight, change) + "".join(_group(group, weight, change) for group in groups)


def _legend(weight: float, change: float) -> str:
    def sample(style: str, text: str) -> str:
        return f'<span style="{style};padding:0 .3em">{text}</span>'

    return (
        '<p style="font-size:.85em">'
        f"ground: weight {sample(_ground(-1, 1), signed(-weight))} to {sample(_ground(1, 1), signed(weight))}; "
        f"line below: log-prob change by the update {sample(_line(-1, 1), signed(-change))}"
        f" to {sample(_line(1, 1), signed(change))}</p>\n"
    )


def _group(group: Group, weight: float, change: float) -> str:
    answer = "" if group.answer is None else f"<div>answer: {_escaped(group.answer)}</div>"
    responses = "".join(_response(response, weight, change) for response in group.shown)
    return (
        f'<section style="margin:1em 0 2em"><p style="margin:0;font-weight:600">{_escaped(headline(group))}</p>\n'
        f'<div style="{BOX}">{_escaped(group.prompt)}{answer}</div>\n{responses}</section>\n'
    )


def _response(response: Response, weight: float, change: float) -> str:
    columns = zip(response.tokens, response.weights, response.logprobs, response.changes, strict=True)
    tokens = "".join(_token(*values, weight=weight, change=change) for values in columns)
    return f'<p style="margin:0;font-size:.9em">{_escaped(caption(response))}</p>\n<div style="{BOX}">{tokens}</div>\n'


def _token(token: str, value: float, logprob: float, moved: float, *, weight: float, change: float) -> str:
    style = ";".join(part for part in (_ground(value, weight), _line(moved, change)) if part)
    told = f"weight {signed(value)}, log-prob {logprob:.4f}, change {signed(moved)}"
    styled = f' style="{style}"' if style else ""
    return f'<span title="{told}"{styled}>{_escaped(token) or "∅"}</span>'


def _ground(value: float, largest: float) -> str:
    return f"background:{_colour(value, largest, 0.65)}" if _has_colour(value, largest) else ""


def _line(value: float, largest: float) -> str:
    return f"border-bottom:.18em solid {_colour(value, largest, 1.0)}" if _has_colour(value, largest) else ""


def _has_colour(value: float, largest: float) -> bool:
    return math.isfinite(value) and value != 0 and largest > 0


def _colour(value: float, largest: float, strongest: float) -> str:
    """Green or red, more solid where the value is larger; the least still to be seen."""
    share = strongest * max(0.1, min(1.0, abs(value) / largest))
    return f"rgba({GREEN if value > 0 else RED},{share:.2f})"


def _escaped(text: str) -> str:
    return escape(visible(text))
