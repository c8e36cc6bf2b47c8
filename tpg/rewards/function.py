"""Rewards from any function of the user's."""

import inspect
import pkgutil
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

from pydantic import field_validator

from tpg.component import component
from tpg.rewards.base import RewardTerm, Sample, as_number

ALWAYS_THERE = frozenset({"prompt", "response", "token_ids", "truncated"})


@component
class Function(RewardTerm):
    """What the user's function `module:name` returns.

    It is called with what its parameters name: `prompt`, `response`, `token_ids`, `truncated`, `answer`, and columns of
    the task; `**kwargs` gets all of them. Raises `ValueError` when built if it cannot be imported or so called.
    """

    function: str

    @field_validator("function")
    @classmethod
    def _imports(cls, path: str) -> str:
        module, colon, name = path.partition(":")
        if not (module and colon and name):
            raise ValueError(f"{path!r} is not of the form module:function")
        try:
            function, parameters = _resolve(path)
        except Exception as error:
            raise ValueError(f"cannot import {path!r}: {type(error).__name__}: {error}") from error
        if not callable(function):
            raise ValueError(f"{path!r} is no function but of type {type(function).__name__}")
        for parameter in parameters.values():
            if parameter.kind is parameter.POSITIONAL_ONLY:
                raise ValueError(f"{path!r} is called with keywords, but its parameter {parameter.name!r} takes none")
        return path

    def required_columns(self) -> frozenset[str]:
        """Name the parameters without a default, be it `answer` or columns of the task."""
        parameters = _resolve(self.function)[1].values()
        return frozenset(p.name for p in parameters if p.default is p.empty and _is_named(p)) - ALWAYS_THERE

    def warm_up(self) -> None:
        """Import the function's module."""
        _resolve(self.function)

    def score(self, sample: Sample) -> float:
        """Call the function. Raises `TypeError` unless it returns a number."""
        function, parameters = _resolve(self.function)
        offered = {
            **sample.columns,
            "prompt": sample.prompt,
            "response": sample.response,
            "token_ids": sample.token_ids,
            "truncated": sample.truncated,
        }
        if sample.answer is not None:
            offered["answer"] = sample.answer
        if not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
            offered = {p.name: offered[p.name] for p in parameters.values() if _is_named(p) and p.name in offered}
        return as_number(function(**offered))


@cache
def _resolve(path: str) -> tuple[Callable[..., Any], Mapping[str, inspect.Parameter]]:
    """Find what `module:name` stands for and its parameters (none for what cannot be called)."""
    function = pkgutil.resolve_name(path)
    return function, inspect.signature(function).parameters if callable(function) else {}


def _is_named(parameter: inspect.Parameter) -> bool:
    return parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
