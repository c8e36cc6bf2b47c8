"""Runs by method, and what the seeds of each say together."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from tpg.reporting.comparing import statistics
from tpg.reporting.comparing.curves import Measure
from tpg.reporting.comparing.runs import Run
from tpg.reporting.comparing.settings import Setting, label, varying
from tpg.reporting.comparing.statistics import Estimate


@dataclass(frozen=True)
class Method:
    """Runs of one config but for the seed, and but for what is averaged over."""

    name: str
    settings: dict[str, str]
    """Those that vary between methods."""
    strata: dict[tuple[str, ...], list[Run]]
    """Its runs by the values that are averaged over; one stratum without such."""

    @property
    def runs(self) -> list[Run]:
        """All of them."""
        return [run for stratum in self.strata.values() for run in stratum]


@dataclass(frozen=True)
class Performance:
    """How a method ends."""

    scores: list[float]
    """One a run."""
    mean: Estimate
    iqm: Estimate


@dataclass(frozen=True)
class Efficiency:
    """When a method's runs first reach a reward: medians over the runs that do."""

    reached: int
    runs: int
    iterations: float
    tokens: float


@dataclass(frozen=True)
class Cost:
    """What a run of a method takes, on average."""

    seconds: float
    tokens: float
    throughput: float
    """Generated tokens a second."""


def by_method(runs: Sequence[Run], across: Sequence[str]) -> tuple[list[Method], list[Setting]]:
    """The methods in the order of their first run, and the settings that vary."""
    settings = varying([run.config for run in runs])
    own = [setting for setting in settings if setting.key not in across]
    averaged = [setting for setting in settings if setting.key in across]
    methods: dict[tuple[str, ...], Method] = {}
    for i, run in enumerate(runs):
        key = tuple(setting.values[i] for setting in own)
        if key not in methods:
            named = {setting.key: setting.values[i] for setting in own}
            name = label(own, i) or _only_name(runs)
            same = sum(method.name.partition(" #")[0] == name for method in methods.values())
            methods[key] = Method(f"{name} #{same + 1}" if same else name, named, {})
        stratum = tuple(setting.values[i] for setting in averaged)
        methods[key].strata.setdefault(stratum, []).append(run)
    return list(methods.values()), settings


def _only_name(runs: Sequence[Run]) -> str:
    choices = runs[0].config.get("choices", {})
    return str(choices.get("algorithm") or choices.get("estimator") or "all runs")


def score_measure(runs: Sequence[Run]) -> Measure:
    """What final performance is told by: the held-out reward where every run was evaluated."""
    return "eval/reward" if all(run.column("eval/reward") or "eval/reward" in run.final for run in runs) else "reward"


def score(run: Run, measure: Measure) -> float:
    """The final policy's held-out reward, or the mean training reward of the last tenth of the iterations."""
    if measure == "eval/reward":
        return run.final.get(measure, run.column(measure)[-1] if run.column(measure) else math.nan)
    rewards = run.column(measure)
    return statistics.finite_mean(rewards[-max(1, round(len(rewards) / 10)) :])


def performance(method: Method, measure: Measure, resamples: int) -> Performance | None:
    """Mean and interquartile mean of a method's scores; None where no run has one."""
    strata = scores(method, measure)
    if not any(strata):
        return None
    kept = [stratum for stratum in strata if stratum]
    return Performance(
        scores=[value for stratum in kept for value in stratum],
        mean=statistics.estimate(statistics.mean, kept, resamples),
        iqm=statistics.estimate(statistics.interquartile_mean, kept, resamples),
    )


def scores(method: Method, measure: Measure) -> list[list[float]]:
    """A method's finite scores by stratum."""
    return [[v for run in stratum if math.isfinite(v := score(run, measure))] for stratum in method.strata.values()]


def improvement(x: Method, y: Method, measure: Measure, resamples: int) -> Estimate | None:
    """The probability that x is better than y, over the strata that both have; None where there is none."""
    of_x = dict(zip(x.strata, scores(x, measure), strict=True))
    of_y = dict(zip(y.strata, scores(y, measure), strict=True))
    common = [key for key in of_x if of_x[key] and of_y.get(key)]
    if not common:
        return None
    return statistics.compare([of_x[key] for key in common], [of_y[key] for key in common], resamples)


def half_way(methods: Sequence[Method]) -> float | None:
    """Half-way from the mean first reward to the best method's last; None if no method has got better."""
    starts = [rewards[0] for method in methods for run in method.runs if (rewards := run.column("reward"))]
    ends = [statistics.finite_mean([score(run, "reward") for run in method.runs]) for method in methods]
    ends = [end for end in ends if math.isfinite(end)]
    if not starts or not ends:
        return None
    start, best = sum(starts) / len(starts), max(ends)
    return (start + best) / 2 if best > start else None


def efficiency(method: Method, threshold: float) -> Efficiency:
    """When the mean training reward of three iterations first reaches the threshold."""
    when = []
    for run in method.runs:
        rows = [row for row in run.rows if math.isfinite(row.get("reward", math.nan))]
        i = statistics.first_at_least(statistics.trailing_mean([row["reward"] for row in rows]), threshold)
        if i is not None:
            when.append((rows[i]["iteration"], rows[i].get("num_tokens", math.nan)))
    if not when:
        return Efficiency(0, len(method.runs), math.nan, math.nan)
    iterations, tokens = (median(values) for values in zip(*when, strict=True))
    return Efficiency(len(when), len(method.runs), iterations, tokens)


def cost(method: Method) -> Cost:
    """Means over the runs; tokens a second are those of all runs together."""
    seconds, tokens = ([getattr(run, name) for run in method.runs] for name in ("seconds", "tokens"))
    total = sum(seconds)
    return Cost(total / len(seconds), sum(tokens) / len(tokens), sum(tokens) / total if total else math.nan)
