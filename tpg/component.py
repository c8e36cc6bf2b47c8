"""The decorator that makes a class an option of a config group."""

from typing import Any, TypeVar, dataclass_transform

import pydantic
from pydantic.dataclasses import dataclass

T = TypeVar("T")


@dataclass_transform(kw_only_default=True, frozen_default=True, field_specifiers=(pydantic.Field,))
def component(cls: type[T]) -> type[T]:
    """Turn a class into a frozen, keyword-only dataclass whose fields are checked for type and range.

    Building one is cheap and touches no file, so that a whole experiment is checked before anything is loaded.
    Unknown keys, wrong types and numbers out of range raise `pydantic.ValidationError`.
    """
    config: Any = pydantic.ConfigDict(
        extra="forbid", arbitrary_types_allowed=True, allow_inf_nan=False, validate_default=True
    )
    made: Any = dataclass(frozen=True, kw_only=True, config=config)(cls)
    return made
