"""Which classes a config may name by `_target_`."""

import importlib
import importlib.util
import os
import sys
from pathlib import Path

from pydantic.dataclasses import is_pydantic_dataclass

from tpg.errors import UserError, one_line
from tpg.spelling import did_you_mean

PACKAGES = ("tpg", "torch", "lightning", "transformers")
BASES = frozenset(
    {
        "lightning.pytorch.callbacks.callback.Callback",
        "lightning.pytorch.loggers.logger.Logger",
        "torch.nn.modules.module.Module",
    }
)
"""Of what these packages' classes must be, if no option: among the others are some that start programs."""
VARIABLE = "TPG_MODULES"
"""Environment variable with the user's own installed packages, comma separated."""
INSTALLED = frozenset({"site-packages", "dist-packages"})
ALLOWED = f"only classes of {', '.join(PACKAGES)} or your own"


def class_of(target: str, given: str) -> type:
    """The class with this dotted path. Raises `UserError` that begins with `given` if there is none that may be built.

    A module that may not be named is not imported either.
    """
    module, _, name = target.rpartition(".")
    _refuse_foreign(target.split(".")[0], given, "")
    try:
        found = getattr(importlib.import_module(module), name)
    except AttributeError as error:
        raise UserError(f"{given}: {one_line(error)}{did_you_mean(name, dir(error.obj))}") from None
    except Exception as error:  # whatever the user's module raises
        raise UserError(f"{given}: {one_line(error)}") from None
    if not isinstance(found, type):
        raise UserError(f"{given}: is no class")
    home = found.__module__.split(".")[0]
    _refuse_foreign(home, given, f"is {found.__module__}.{found.__name__}; ")  # named by a module that imports it
    bases = {f"{base.__module__}.{base.__qualname__}" for base in found.__mro__}
    if home in PACKAGES and not is_pydantic_dataclass(found) and not bases & BASES:
        raise UserError(f"{given}: is no option of tpg and no Callback, Logger or Module, and no other class is built")
    return found


def _refuse_foreign(package: str, given: str, named: str) -> None:
    """Raise `UserError` for the standard library, and for an installed package that the user has not called their own.

    Modules of the working directory and editable installs lie elsewhere and are the user's.
    """
    if package in sys.stdlib_module_names:
        raise UserError(f"{given}: {named}{ALLOWED}")
    own = {word.strip().split(".")[0] for word in os.environ.get(VARIABLE, "").split(",")}
    if package not in PACKAGES and package not in own and _is_installed(package):
        remedy = f"if the installed package {package} is your own, set {VARIABLE}={package} in the environment"
        raise UserError(f"{given}: {named}{ALLOWED}; {remedy}")


def _is_installed(package: str) -> bool:
    try:
        spec = importlib.util.find_spec(package)
    except ValueError:  # no name, or a script that is being run
        return False
    places = [] if spec is None else [spec.origin or "", *(spec.submodule_search_locations or [])]
    return any(INSTALLED & set(Path(place).parts) for place in places)
