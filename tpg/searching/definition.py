"""A search as typed options, and what must hold before its first trial."""

import dataclasses
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from pydantic import Field

from tpg.component import component
from tpg.errors import UserError
from tpg.searching.parameters import Categorical, Float, Int, Parameter, Value, override
from tpg.searching.pruners import Pruner
from tpg.searching.samplers import Sampler
from tpg.spelling import did_you_mean
from tpg.training.experiment import Experiment

TYPES: dict[str, Any] = {"float": Float, "int": Int, "categorical": Categorical}
MEASURED = ("reward/first", "reward/last", "reward/best", "num_tokens", "seconds", "iterations", "unscored", "eval/")
"""What summary.json has; every metric of metrics.csv may be named too."""
MOST_CORNERS = 48


@component
class Sweep:
    """What is varied, what is wanted, and how it is searched."""

    parameters: dict[str, Parameter]
    objectives: dict[str, Literal["maximize", "minimize"]] = Field(default_factory=dict)
    sampler: Sampler
    pruner: Pruner
    trials: int = Field(ge=1)
    timeout: float | None = Field(default=None, gt=0)
    """Seconds after which no trial is begun."""
    jobs: int = Field(ge=1)
    retries: int = Field(ge=0)
    storage: str | None = None
    study: str | None = None
    trial: int | None = None

    @property
    def wanted(self) -> dict[str, Literal["maximize", "minimize"]]:
        """Directions by metric."""
        return dict(self.objectives) or {"eval/reward": "maximize"}

    @property
    def limit(self) -> int:
        """How many trials the study has at most."""
        return int(min(self.trials, self.sampler.limit(self.parameters)))

    def overrides(self, values: Mapping[str, Any]) -> list[str]:
        """A trial's values as arguments of tpg.train, in the definition's order."""
        return [override(key, values[key]) for key in self.parameters]

    def check(self, given: Sequence[str]) -> None:
        """Raise `UserError` for what cannot be searched. `given` are the keys that the command line sets."""
        if not self.parameters:
            raise UserError("sweep.parameters: is empty; name what is varied, e.g. optimizer.lr")
        for key, parameter in self.parameters.items():
            parameter.check(f"sweep.parameters.{key}")
            if key in given:
                raise UserError(f"{key}: the sweep varies it; leave it out, or take it out of sweep.parameters")
        self.sampler.check(self.parameters, len(self.wanted))
        if self.pruner.reads is not None and len(self.wanted) > 1:
            raise UserError("sweep/pruner: trials are judged early by one objective only; use sweep/pruner=none")

    def check_experiment(self, experiment: Experiment) -> None:
        """Raise `UserError` for an experiment whose trials could not tell what is asked of them."""
        experiment.check()
        asked = [(f"sweep.objectives.{name}", name) for name in self.wanted]
        if self.pruner.reads is not None:
            asked.append(("sweep.pruner.metric", self.pruner.reads))
        for key, name in asked:
            if name.startswith("eval/") and not experiment.evaluation.every:
                raise UserError(f"{key}: evaluation.every=0 measures no {name}")
            n = experiment.evaluation.responses_per_prompt
            estimates = [f"eval/{kind}" for kind in ("reward", "pass@1", f"pass@{n}", f"maj@{n}", "mean_length")]
            if name.startswith("eval/") and name not in [*estimates, "eval/clipped_ratio", "eval/unscored"]:
                raise UserError(
                    f"{key}={name}: an evaluation has {', '.join(estimates)}{did_you_mean(name, estimates)}"
                )

    def corners(self) -> list[dict[str, Value]]:
        """Combinations of the ends: all of them while they are few, else each value once and both extremes."""
        values = {key: parameter.corners() for key, parameter in self.parameters.items()}
        if math.prod(len(choices) for choices in values.values()) <= MOST_CORNERS:
            return [dict(zip(values, chosen, strict=True)) for chosen in itertools.product(*values.values())]
        first = {key: choices[0] for key, choices in values.items()}
        return [
            first,
            {key: choices[-1] for key, choices in values.items()},
            *(first | {key: choice} for key, choices in values.items() for choice in choices[1:]),
        ]


@component
class Definition:
    """What `sweep` stands for, so that every message names keys as they are overridden."""

    sweep: Sweep


def check_corners(sweep: Sweep, compose: Callable[[list[str]], Experiment], file: str) -> int:
    """Compose and check every corner; returns how many. Raises `UserError` that names the definition's key."""
    corners = sweep.corners()
    for corner in corners:
        overrides = sweep.overrides(corner)
        try:
            sweep.check_experiment(compose(overrides))
        except UserError as error:
            told = str(error)
            if told.startswith("sweep."):
                raise
            named = told.replace("=", " ").replace(":", " ").split()[0] if told else ""
            blamed = next((key for key in corner if key == named), None)
            place = f"sweep.parameters.{blamed}" if blamed else f"sweep.parameters ({' '.join(overrides)})"
            raise UserError(f"{place} of {file}: {told}") from None
    return len(corners)


def with_targets(definition: Mapping[str, Any]) -> dict[str, Any]:
    """The definition with a class in place of each parameter's `type`. Raises `UserError` for an unknown one."""
    parameters = {}
    for key, node in (definition.get("parameters") or {}).items():
        place = f"sweep.parameters.{key}"
        if not isinstance(node, Mapping):
            raise UserError(f"{place}={node}: expected a range, e.g. {{type: float, low: 1.0e-6, high: 1.0e-4}}")
        if "type" not in node:
            deeper = " (give the whole key at once, as in optimizer.lr)" if _nested(node) else ""
            raise UserError(f"{place}: has no type; give type: {', '.join(TYPES)}{deeper}")
        if node["type"] not in TYPES:
            near = did_you_mean(str(node["type"]), TYPES)
            raise UserError(f"{place}.type={node['type']}: no such type; there are {', '.join(TYPES)}{near}")
        cls = TYPES[node["type"]]
        rest = {name: value for name, value in node.items() if name != "type"}
        names = [field.name for field in dataclasses.fields(cls)]
        for name in rest:
            if name not in names:
                has = f"{cls.__name__} has {', '.join(names)}"
                raise UserError(f"{place}.{name}: no such key; {has}{did_you_mean(str(name), names)}")
        parameters[key] = {"_target_": f"{cls.__module__}.{cls.__name__}", **rest}
    own = {"_target_": f"{Sweep.__module__}.{Sweep.__name__}"}
    return {"sweep": {**own, **definition, "parameters": parameters}}


def _nested(node: Mapping[str, Any]) -> bool:
    return any(isinstance(value, Mapping) for value in node.values())
