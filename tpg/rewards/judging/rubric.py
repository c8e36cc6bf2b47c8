"""What a judge is asked: a template of the config's, with responses between marks that they cannot write themselves."""

import hashlib
import re
from collections.abc import Mapping, Sequence
from string import Formatter
from typing import Any

FIELD = re.compile(r"\w+(\[\w+\])*")
"""A column, or a part of one: `{entry[question]}`."""


def fields(template: str) -> frozenset[str]:
    """The names that stand in braces. Raises `ValueError` for what is no such template."""
    found = set()
    for _, field, spec, conversion in Formatter().parse(template):
        if field is None:
            continue
        if not FIELD.fullmatch(field) or spec or conversion:
            raise ValueError(f"{{{field}}} is no name of a column; a brace that is meant as such is written twice")
        found.add(field.split("[")[0])
    return frozenset(found)


def check_rubric(template: str, responses: Sequence[str]) -> str:
    """The template, if each of the responses has its place in it. Raises `ValueError` otherwise."""
    missing = [name for name in responses if name not in fields(template)]
    if missing:
        raise ValueError(f"the judge would not see the response: there is no {{{missing[0]}}} in it")
    return template


def question(template: str, known: Mapping[str, Any], responses: Mapping[str, str]) -> str:
    """The template filled in; each response between two marks, which are a function of all that is asked.

    Raises `LookupError` for a column that is not known, or has no such part.
    """
    unmarked = template.format(**{**known, **responses})
    mark = hashlib.blake2b(unmarked.encode(errors="surrogatepass"), digest_size=6).hexdigest()
    marked = {name: _between_marks(name, text, mark) for name, text in responses.items()}
    return template.format(**{**known, **marked})


def _between_marks(name: str, text: str, mark: str) -> str:
    what = name if name == "response" else f"{name} response"
    return f"[{what} {mark}]\n{text}\n[end of {what} {mark}]"
