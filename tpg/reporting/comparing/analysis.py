"""The numbers of a report, from runs."""

from collections.abc import Sequence
from dataclasses import dataclass

from tpg.errors import UserError
from tpg.reporting.comparing import methods as of_methods
from tpg.reporting.comparing import statistics
from tpg.reporting.comparing.concerns import Concern, concerns
from tpg.reporting.comparing.curves import Axis, MeanCurve, Measure, curve, mean_curve
from tpg.reporting.comparing.examples import Examples, TokenView, examples, token_view
from tpg.reporting.comparing.methods import Cost, Efficiency, Method, Performance
from tpg.reporting.comparing.options import ReportOptions
from tpg.reporting.comparing.runs import Found, Run
from tpg.reporting.comparing.settings import Setting, in_common
from tpg.reporting.comparing.statistics import Estimate

FEW_METHODS = 6
"""So many are compared pair by pair; of more, the best is compared with each."""
PANELS: list[tuple[Measure, Axis]] = [
    ("reward", "iteration"),
    ("reward", "tokens"),
    ("eval/reward", "iteration"),
    ("eval/reward", "tokens"),
]


@dataclass(frozen=True)
class MethodReport:
    """All that is said of a method."""

    method: Method
    performance: Performance | None
    efficiency: Efficiency | None
    cost: Cost
    curves: dict[tuple[Measure, Axis], MeanCurve]
    examples: Examples
    tokens: TokenView | None


@dataclass(frozen=True)
class Improvement:
    """The probability that a run of one method is better than one of another."""

    better: str
    worse: str
    probability: Estimate


@dataclass(frozen=True)
class AblationRow:
    """How the runs with one value of a setting end, whatever their other settings."""

    setting: str
    value: str
    runs: int
    mean: Estimate


@dataclass(frozen=True)
class Report:
    """What the page, the Markdown and the JSON show."""

    runs: list[Run]
    left_out: list[str]
    notes: list[str]
    settings: list[Setting]
    shared: dict[str, str]
    measure: Measure
    threshold: float | None
    methods: list[MethodReport]
    """The best first."""
    improvements: list[Improvement]
    ablation: list[AblationRow]
    balanced: bool
    """Whether every combination of the settings was run."""
    concerns: list[Concern]


def analyse(found: Found, options: ReportOptions) -> Report:
    """The report of these runs. Raises `UserError` if there is nothing to report."""
    started = [run for run in found.runs if run.column("reward")]
    runs = [run for run in started if run.finished or not options.finished_only]
    if not runs:
        what = "finished" if started else "measured a reward in any iteration"
        raise UserError(f"runs={','.join(options.places)}: none of the {len(found.runs)} runs has {what} yet")
    methods, settings = of_methods.by_method(runs, options.across)
    unknown = [key for key in options.across if key not in {setting.key for setting in settings}]
    if unknown:
        varied = ", ".join(setting.key for setting in settings) or "nothing"
        raise UserError(f"across={unknown[0]}: does not vary between these runs; what does: {varied}")
    measure = of_methods.score_measure(runs)
    threshold = options.threshold if options.threshold is not None else of_methods.half_way(methods)
    reports = [_of_method(method, measure, threshold, options) for method in methods]
    reports.sort(key=lambda each: -each.performance.mean.value if each.performance else float("inf"))
    ablation, balanced = _ablation(runs, settings, measure, options.resamples)
    return Report(
        runs=runs,
        left_out=[f"{run.name} ({run.state})" for run in found.runs if run not in runs],
        notes=found.notes,
        settings=settings,
        shared=in_common([run.config for run in runs]),
        measure=measure,
        threshold=threshold,
        methods=reports,
        improvements=_improvements([each.method for each in reports if each.performance], measure, options.resamples),
        ablation=ablation,
        balanced=balanced,
        concerns=concerns(runs),
    )


def _of_method(method: Method, measure: Measure, threshold: float | None, options: ReportOptions) -> MethodReport:
    return MethodReport(
        method=method,
        performance=of_methods.performance(method, measure, options.resamples),
        efficiency=None if threshold is None else of_methods.efficiency(method, threshold),
        cost=of_methods.cost(method),
        curves={panel: mean_curve([curve(run, *panel) for run in method.runs], panel[1]) for panel in PANELS},
        examples=examples(method.runs, options.completions),
        tokens=token_view(method.runs),
    )


def _improvements(methods: Sequence[Method], measure: Measure, resamples: int) -> list[Improvement]:
    tops = methods if len(methods) <= FEW_METHODS else methods[:1]
    found = []
    for i, top in enumerate(tops):
        for other in methods[i + 1 :]:
            probability = of_methods.improvement(top, other, measure, resamples)
            if probability is not None:
                found.append(Improvement(top.name, other.name, probability))
    return found


def _ablation(
    runs: Sequence[Run], settings: Sequence[Setting], measure: Measure, resamples: int
) -> tuple[list[AblationRow], bool]:
    """A row a value of each setting, its runs in strata by the values of the other settings."""
    rows = []
    combinations = set(zip(*(setting.values for setting in settings), strict=True)) if settings else set()
    possible = 1
    for setting in settings:
        others = [other for other in settings if other is not setting]
        values = _in_order(setting.values)
        possible *= len(values)
        for value in values:
            strata: dict[tuple[str, ...], list[float]] = {}
            for i, run in enumerate(runs):
                score = of_methods.score(run, measure)
                if setting.values[i] == value and score == score:
                    strata.setdefault(tuple(other.values[i] for other in others), []).append(score)
            if strata:
                mean = statistics.estimate(statistics.mean, list(strata.values()), resamples)
                rows.append(AblationRow(setting.key, value, sum(map(len, strata.values())), mean))
    return rows, len(combinations) == possible or not settings


def _in_order(values: Sequence[str]) -> list[str]:
    """Each once; numbers by size, words as they came."""
    once = list(dict.fromkeys(values))
    try:
        return sorted(once, key=float)
    except ValueError:
        return once
