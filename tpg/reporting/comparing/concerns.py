"""What a reader of a run should know before believing its numbers."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tpg.reporting.comparing.runs import Run
from tpg.reporting.comparing.statistics import finite_mean
from tpg.reporting.guard_records import Span

TRUNCATED, ALL_EQUAL, CLIPPED, AGREEMENT = 0.1, 0.5, 0.2, 0.5
"""Shares from which on a run is mentioned: of truncated responses, of groups without a signal, of clipped tokens;
and the effective sample size below which it is."""


@dataclass(frozen=True)
class Concern:
    """A warning, with each run that it is about and what was seen there."""

    title: str
    advice: str
    runs: dict[str, str]


def concerns(runs: Sequence[Run]) -> list[Concern]:
    """Every warning that at least one run raises, the gravest first."""
    found = []
    for title, advice, look in CHECKS:
        seen = {run.name: said for run in runs if (said := look(run))}
        if seen:
            found.append(Concern(title, advice, seen))
    return found + _guards(runs)


def _guards(runs: Sequence[Run]) -> list[Concern]:
    """What guards said while the runs went on, a warning a guard, in the order of their names."""
    said: dict[str, dict[str, list[Span]]] = {}
    for run in runs:
        for span in run.guards:
            said.setdefault(span.guard, {}).setdefault(run.name, []).append(span)
    found = []
    for guard, by_run in sorted(said.items()):
        remedies = {span.remedy: None for each in by_run.values() for span in each if span.remedy}
        told = {run: "; ".join(f"{span.where}: {span.told}" for span in each) for run, each in by_run.items()}
        found.append(Concern(f"Guard {guard}", " ".join(map(_sentence, remedies)), told))
    return found


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:].rstrip(".") + "."


def _not_finite(run: Run) -> str:
    watched = ("loss", "grad_norm", "reward")
    bad = [int(row["iteration"]) for row in run.rows if any(not math.isfinite(row.get(key, 0.0)) for key in watched)]
    return f"{len(bad)} of {len(run.rows)} iterations, from iteration {bad[0]} on" if bad else ""


def _unfinished(run: Run) -> str:
    return "" if run.finished else run.state.removeprefix("unfinished, ")


def _unscored(run: Run) -> str:
    count = sum(run.column("completions/unscored"))
    return f"{count:.0f} responses" if count else ""


def _share(metric: str, least: float, what: str) -> Callable[[Run], str]:
    """The mean over the last tenth of the iterations, but for few of them all, if it is at least so much."""

    def look(run: Run) -> str:
        values = run.column(metric)
        share = finite_mean(values[-max(5, len(values) // 10) :])
        return f"{share:.0%} {what}" if share >= least else ""

    return look


def _disagreement(run: Run) -> str:
    ess = finite_mean(run.column("mismatch/ess"))
    return f"effective sample size {ess:.0%}" if ess < AGREEMENT else ""


def _worse(run: Run) -> str:
    rewards = run.column("reward")
    tenth = max(1, len(rewards) // 10)
    if len(rewards) < 5:
        return ""
    first, last = finite_mean(rewards[:tenth]), finite_mean(rewards[-tenth:])
    return f"{first:.3f} → {last:.3f}" if last < first else ""


CHECKS: list[tuple[str, str, Callable[[Run], str]]] = [
    (
        "Loss, gradient or reward not finite",
        "The policy may be broken from there on. Lower the learning rate, or clip the gradient.",
        _not_finite,
    ),
    (
        "Unfinished",
        "These count with their latest values. Continue one with: python -m tpg.train resume=FOLDER",
        _unfinished,
    ),
    (
        "Reward ended below where it began",
        "The method made the policy worse. Lower the learning rate, or add a KL term.",
        _worse,
    ),
    (
        "Responses that could not be scored",
        "They are left out of the update. Look at them among the completions, and at the reward function.",
        _unscored,
    ),
    (
        "Responses cut off at the token limit, in the last iterations",
        "A cut response can hardly be right. Raise rollout.max_response_tokens, or reward shorter ones.",
        _share("completions/clipped_ratio", TRUNCATED, "truncated"),
    ),
    (
        "Groups whose rewards are all equal, in the last iterations",
        "They carry no signal. The task is too easy or too hard, or a group is too small.",
        _share("frac_reward_zero_std", ALL_EQUAL, "of the groups"),
    ),
    (
        "Many clipped ratios, in the last iterations",
        "The update leaves the trust region. Take fewer epochs or a smaller learning rate.",
        _share("clip_ratio/region_mean", CLIPPED, "of the tokens"),
    ),
    (
        "Rollout and training disagree on probabilities",
        "Use mismatch=token_truncate or sequence_truncate, or the same precision on both sides.",
        _disagreement,
    ),
]
