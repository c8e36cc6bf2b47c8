"""What `tpg.evaluate` found, as tables on the screen, as JSON and as a picture."""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from tpg.reporting.judging_picture import draw_judging
from tpg.reporting.tokens.record import visible
from tpg.rewards.base import Sample
from tpg.training.agreement import Agreement
from tpg.training.best_of_n import Point
from tpg.training.run_folder import write_atomically


@dataclass(frozen=True)
class Judgement:
    """Everything that an evaluation says."""

    task: str
    seed: int
    responses_per_prompt: int
    reward_model: tuple[str, ...]
    against: tuple[str, ...]
    success: float
    """The truth from which a response is right."""
    estimates: dict[str, float]
    samples: Sequence[Sample]
    rewards: Sequence[float]
    """One a sample, as every list here; NaN where unscored."""
    truths: Sequence[float]
    """NaN without `against`."""
    curve: Sequence[Point] = ()
    left_out: int = 0
    """Prompts without enough scored responses for the curve."""
    chosen: Sequence[int] = ()
    """The best response of each prompt, by place."""
    agreement: Agreement | None = None

    @property
    def prompts(self) -> int:
        """How many were answered."""
        return len(self.samples) // self.responses_per_prompt


def print_judgement(judgement: Judgement, shown: int, console: Console) -> None:
    """Print the estimates, the curve, the agreement and `shown` answers."""
    title = f"{judgement.task}: {judgement.prompts} held-out prompts x {judgement.responses_per_prompt} responses"
    table = Table(title=title)
    table.add_column("estimate")
    table.add_column("value", justify="right")
    for name, value in judgement.estimates.items():
        table.add_row(name, f"{value:.4f}" if value == 0 or abs(value) >= 1e-3 else f"{value:.2e}")  # a small cost
    console.print(table)
    if judgement.curve:
        _print_curve(judgement, console)
    if judgement.agreement is not None:
        _print_agreement(judgement, judgement.agreement, shown, console)
    if shown:
        every = max(1, judgement.responses_per_prompt)
        places = (judgement.chosen or range(0, len(judgement.samples), every))[:shown]
        title = f"best of {judgement.curve[-1].n}" if judgement.chosen else "sample answers"
        _print_answers(title, judgement, places, console)


def _print_curve(judgement: Judgement, console: Console) -> None:
    has_truth = bool(judgement.against)
    names = ", ".join(judgement.reward_model)
    table = Table(title=f"best of n by {names}: mean over prompts, with its standard error")
    for column in ("n", "KL", names, *(["against " + ", ".join(judgement.against)] if has_truth else [])):
        table.add_column(column, justify="right")
    for point in judgement.curve:
        truth = [_with_error(point.truth, point.truth_error)] if has_truth else []
        table.add_row(str(point.n), f"{point.kl:.3f}", _with_error(point.reward, point.reward_error), *truth)
    console.print(table)
    if judgement.left_out:
        least = judgement.curve[-1].n
        console.print(f"note: {judgement.left_out} prompts with fewer than {least} scored responses are left out of it")


def _print_agreement(judgement: Judgement, found: Agreement, shown: int, console: Console) -> None:
    against = ", ".join(judgement.against)
    one_class = f"undefined: {'all' if found.right else 'none'} of the responses are right"
    table = Table(title=f"{', '.join(judgement.reward_model)} against {against}")
    table.add_column("agreement")
    table.add_column("value", justify="right")
    fitted = " (after a logistic fit to these responses)" if found.fitted else ""
    like = f"wrong, and rewarded like a right one (>= {found.threshold:.4g})"
    high = like if found.right else f"wrong, as all are, and above the median reward (> {found.threshold:.4g})"
    rows = {
        f"responses that both scored, of {len(judgement.samples)}": str(found.responses),
        f"of them right ({against} >= {judgement.success:g})": str(found.right),
        f"pairwise accuracy within prompts, {found.pairs} pairs": _or(found.ordered, "undefined: no such pair"),
        "AUC": _or(found.auc, one_class),
        f"expected calibration error{fitted}": _or(found.calibration_error, one_class),
        high: str(len(found.fooled)),
    }
    for row in rows.items():
        table.add_row(*row)
    console.print(table)
    if found.fooled and shown:
        title = "reward hacking: what the reward ranks high and the verifier fails"
        _print_answers(title, judgement, found.fooled[:shown], console)


def _print_answers(title: str, judgement: Judgement, places: Sequence[int], console: Console) -> None:
    table = Table(title=title, show_lines=True)
    for column in ("prompt", "response", "answer", "reward", *(["against"] if judgement.against else [])):
        table.add_column(column, overflow="fold")
    for place in places:
        sample = judgement.samples[place]
        numbers = [judgement.rewards[place], *([judgement.truths[place]] if judgement.against else [])]
        said = ["unscored" if math.isnan(number) else f"{number:.3f}" for number in numbers]
        table.add_row(*(plain(text) for text in (sample.prompt, sample.response, sample.answer or "", *said)))
    console.print(table)


def write_report(path: Path, judgement: Judgement) -> list[Path]:
    """Write the numbers as JSON, and a picture beside them if there is something to draw; the files."""
    path.parent.mkdir(parents=True, exist_ok=True)
    report = as_json(judgement)
    write_atomically(path, json.dumps(report, indent=2, allow_nan=False) + "\n")
    picture = path.with_suffix(".png")
    title = f"{judgement.task}: {', '.join(judgement.reward_model)}"
    title += f" against {', '.join(judgement.against)}" if judgement.against else ""
    drawn = draw_judging(picture, title, report["best_of_n"]["curve"], report["agreement"] or {})
    return [path, picture] if drawn else [path]


def as_json(judgement: Judgement) -> dict[str, Any]:
    """The report; null for what is undefined."""
    found = judgement.agreement
    report = {
        "task": judgement.task,
        "seed": judgement.seed,
        "prompts": judgement.prompts,
        "responses_per_prompt": judgement.responses_per_prompt,
        "reward_model": list(judgement.reward_model),
        "against": list(judgement.against),
        "against_success_reward": judgement.success,
        "estimates": judgement.estimates,
        "best_of_n": {"left_out": judgement.left_out, "curve": [asdict(point) for point in judgement.curve]},
        "agreement": None if found is None else {**asdict(found), "fooled": _examples(judgement, found.fooled)},
    }
    plain_report: dict[str, Any] = _without_nan(report)
    return plain_report


def _examples(judgement: Judgement, places: Sequence[int]) -> list[dict[str, Any]]:
    return [
        {
            "prompt": judgement.samples[place].prompt,
            "response": judgement.samples[place].response,
            "answer": judgement.samples[place].answer,
            "reward": judgement.rewards[place],
            "truth": judgement.truths[place],
        }
        for place in places
    ]


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without_nan(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _with_error(value: float, error: float) -> str:
    return f"{value:.4f}" if math.isnan(error) else f"{value:.4f} ± {error:.4f}"


def _or(value: float | None, otherwise: str) -> str:
    return otherwise if value is None else f"{value:.4f}"


def plain(text: str) -> str:
    """Text that the console takes as it is: neither markup nor control characters have an effect."""
    return escape(visible(text))
