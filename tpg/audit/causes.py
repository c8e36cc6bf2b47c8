"""Why a method is biased: one ingredient is switched off at a time, and what helps most is blamed."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from tpg.aggregation import SequenceSum
from tpg.audit.enumeration import Bench
from tpg.audit.exact import Moments, moments
from tpg.audit.repairs import REPAIRS
from tpg.audit.tabular import Worlds, draw_world
from tpg.audit.verdict import Judgement
from tpg.estimators.reinforce import Reinforce
from tpg.estimators.rloo import RLOO
from tpg.kl import NoKL
from tpg.method import Method
from tpg.mismatch import NoMismatch
from tpg.objectives.policy_gradient import PolicyGradient
from tpg.rollouts.sampling import Sampling


@dataclass(frozen=True)
class Setting:
    """All that decides what the gradient estimate is: a method, how it samples, and in what worlds."""

    method: Method
    sampling: Sampling
    worlds: Worlds
    group: int
    """Responses to a prompt in one batch."""

    def moments(self, seed: int, limit: int, samples: int) -> Moments:
        """Of the estimate in the world that `seed` draws."""
        bench = Bench(self.method, draw_world(self.worlds, seed), self.sampling)
        return moments(bench, self.group, limit=limit, samples=samples, seed=seed)


@dataclass(frozen=True)
class Cause:
    """An ingredient, and what is left of the bias once it is gone too."""

    name: str
    relative_bias: float
    cosine: float
    scale: float
    exact: bool
    """Whether nothing is left of it."""


def variants(setting: Setting) -> Iterator[tuple[str, Setting]]:
    """The setting less one ingredient, by the ingredient's name: those that the parts themselves declare."""
    method = setting.method
    for part in ("estimator", "objective", "aggregation", "kl", "mismatch"):
        for name, option in getattr(method, part).without().items():
            yield name, replace(setting, method=replace(method, **{part: option}))
    if method.entropy_coefficient:
        yield "entropy bonus", replace(setting, method=replace(method, entropy_coefficient=0.0))
    if setting.sampling.truncates:
        whole = Sampling(setting.sampling.temperature)
        yield "truncated sampling (top-k, top-p, min-p)", replace(setting, sampling=whole)


def circumstances(setting: Setting) -> Iterator[tuple[str, Setting]]:
    """The setting without what the method has to cope with, by its name."""
    worlds = setting.worlds
    if worlds.off_policy:
        yield "rollouts of an older policy", replace(setting, worlds=replace(worlds, off_policy=0.0))
    if worlds.mismatch:
        yield "mismatch of rollout and trainer", replace(setting, worlds=replace(worlds, mismatch=0.0))
    if worlds.critic_error and setting.method.estimator.needs_critic:
        yield "error of the critic", replace(setting, worlds=replace(worlds, critic_error=0.0))


def repaired(setting: Setting) -> Iterator[tuple[str, Setting]]:
    """The setting with its estimator put right from outside."""
    for name, repair in REPAIRS.items():
        if setting.group > 1 or not repair.needs_group:
            estimator = repair(inner=setting.method.estimator)
            yield name, replace(setting, method=replace(setting.method, estimator=estimator))


def replaced(setting: Setting, but: str = "") -> Iterator[tuple[str, Setting]]:
    """The setting with the plainest option in place of a whole part, by the class that it takes out."""
    method = setting.method
    plain: dict[str, Any] = {
        "estimator": RLOO() if setting.group > 1 else Reinforce(),
        "objective": PolicyGradient(),
        "aggregation": SequenceSum(),
        "kl": NoKL(),
        "mismatch": NoMismatch(),
    }
    for part, option in plain.items():
        if part != but and type(getattr(method, part)) is not type(option):
            name = f"something in {type(getattr(method, part)).__name__}"
            yield name, replace(setting, method=replace(method, **{part: option}))


def causes(setting: Setting, judgement: Judgement, judge: Callable[[Setting], Judgement]) -> list[Cause]:
    """The ingredients that bias the setting, in the order in which taking them out helps most.

    `judge` tries a setting. What the parts declare is tried first, then what they have to cope with, then parts beside
    the estimator if one alone is to blame, then repairs from outside; at last whole parts. Ends when nothing is biased
    or nothing helps.
    """
    found: list[Cause] = []
    tried: set[str] = set()
    while not judgement.exact and len(found) < 8:
        step = (
            _best(_confirmed(setting, _tried(variants(setting), judge), judge), judgement)
            or _best(_tried(circumstances(setting), judge), judgement)
            or next((one for one in _tried(replaced(setting, but="estimator"), judge) if one[2].exact), None)
            or _first(_tried(_others(repaired(setting), tried), judge), judgement)
            or _best(_tried(replaced(setting), judge), judgement)
        )
        if step is None:
            break
        name, setting, judgement = step
        tried.add(name)
        found.append(Cause(name, judgement.relative_bias, judgement.cosine, judgement.scale, judgement.exact))
    return found


Tried = tuple[str, Setting, Judgement]


def _tried(settings: Iterator[tuple[str, Setting]], judge: Callable[[Setting], Judgement]) -> Iterator[Tried]:
    return ((name, setting, judge(setting)) for name, setting in settings)


def _others(settings: Iterator[tuple[str, Setting]], tried: set[str]) -> Iterator[tuple[str, Setting]]:
    return ((name, setting) for name, setting in settings if name not in tried)


def _confirmed(setting: Setting, tried: Iterator[Tried], judge: Callable[[Setting], Judgement]) -> Iterator[Tried]:
    """Those in which nothing but the ingredient was taken out.

    An estimator that declares another class instead of itself may hold more than the ingredient that it names, say a
    mistake in a copy: where a repair from outside undoes that ingredient, the two must leave the same.
    """
    own = setting.method.estimator
    for name, changed, left in tried:
        repair = REPAIRS.get(name)
        if repair is not None and setting.group > 1 and type(changed.method.estimator) is not type(own):
            fixed = judge(replace(setting, method=replace(setting.method, estimator=repair(inner=own))))
            off = abs(fixed.relative_bias - left.relative_bias), abs(fixed.misdirection - left.misdirection)
            if max(off) > 0.01 + left.margin:
                continue
        yield name, changed, left


def _first(tried: Iterator[Tried], old: Judgement) -> Tried | None:
    """The first that puts the direction right; if there is none, the one that helps most.

    Several repairs may put the same estimator right: the simpler ones come first.
    """
    seen = []
    for candidate in tried:
        if not old.exact_direction and candidate[2].misdirection < 1e-4 * old.misdirection:
            return candidate
        seen.append(candidate)
    return _best(seen, old)


def _best(tried: Iterable[Tried], old: Judgement) -> Tried | None:
    """The one that helps most: by its direction while that is wrong, then by its bias. None if none helps."""
    tried = list(tried)
    turning = [] if old.exact_direction else [candidate for candidate in tried if _turns(candidate[2], old)]
    if turning:
        return min(turning, key=lambda one: (not one[2].exact, round(one[2].misdirection, 12), one[2].relative_bias))
    shrinking = [candidate for candidate in tried if _shrinks(candidate[2], old)]
    return min(shrinking, key=lambda one: (not one[2].exact, one[2].relative_bias), default=None)


def _turns(new: Judgement, old: Judgement) -> bool:
    """Whether the direction is clearly better."""
    return new.exact_direction or new.misdirection < 0.7 * old.misdirection - old.margin**2


def _shrinks(new: Judgement, old: Judgement) -> bool:
    """Whether the bias is clearly smaller and the direction no worse."""
    closer = new.relative_bias < 0.9 * old.relative_bias - old.margin
    return new.exact or (closer and (new.exact_direction or new.misdirection < 1.1 * old.misdirection))
