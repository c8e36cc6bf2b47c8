"""The table of an audit: a row a method."""

import dataclasses
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

from pydantic import ValidationError

from tpg.audit.causes import Cause, Setting, causes
from tpg.audit.exact import Moments
from tpg.audit.tabular import Tree, Worlds
from tpg.audit.verdict import Judgement, judged
from tpg.errors import UserError
from tpg.estimators.base import Estimator
from tpg.method import Method
from tpg.rewards.combination import Combination
from tpg.rollouts.sampling import Sampling
from tpg.spelling import did_you_mean
from tpg.training.options import Audit

TRIED = 3
"""Worlds on which causes are looked for."""
MOST_LOGITS = 2000
"""Of a world's policy: bounds the memory that its gradients take."""


@dataclass(frozen=True)
class Names:
    """The options that were chosen, as the user would write them."""

    objective: str
    aggregation: str
    kl: str
    mismatch: str


@dataclass(frozen=True)
class Row:
    """What the audit says of one method."""

    estimator: str
    names: Names
    group: int
    varied: dict[str, Any]
    """The key that is varied, with this row's value."""
    judgement: Judgement
    causes: tuple[Cause, ...]

    def as_dict(self) -> dict[str, Any]:
        """As it is written to audit.json."""
        numbers = {key: value for key, value in asdict(self.judgement).items() if key != "verdict"}
        return {
            "estimator": self.estimator,
            **asdict(self.names),
            "responses_per_prompt": self.group,
            "varied": self.varied,
            **numbers,
            "verdict": self.judgement.verdict,
            "causes": [asdict(cause) for cause in self.causes],
        }


def refuse_relative(combination: Combination) -> None:
    """Raise `UserError` for rewards that depend on the other responses to a prompt: a world's do not."""
    if combination.min_group > 1:
        raise UserError(
            f"combination: {type(combination).__name__} compares the responses to one prompt, and a world's rewards are"
            " single numbers; use audit.on=policy, or combination=weighted_sum to audit what else there is"
        )


def setting_of(method: Method, sampling: Sampling, options: Audit) -> Setting:
    """What the options describe. Raises `UserError` when they cannot go together."""
    estimator = method.estimator
    shared = math.ceil(estimator.min_batch / options.prompts)
    fewest = max(estimator.min_group, shared, 2 if method.objective.needs_groups else 1)
    group = options.responses_per_prompt or fewest
    if group < fewest:
        raise UserError(
            f"audit.responses_per_prompt={group}: {type(estimator).__name__} with {type(method.objective).__name__}"
            f" compares responses and needs at least {fewest}"
        )
    # Counted before any tree is grown.
    branches = options.vocabulary - options.end
    logits = options.prompts * options.vocabulary * sum(branches**t for t in range(options.horizon))
    if logits > MOST_LOGITS:
        raise UserError(
            f"audit.vocabulary={options.vocabulary} audit.horizon={options.horizon} audit.prompts={options.prompts}: a"
            f" policy of {logits} logits cannot be enumerated; at most {MOST_LOGITS}"
        )
    worlds = Worlds(
        tree=Tree(options.vocabulary, options.horizon, options.end),
        prompts=options.prompts,
        reward=options.reward,
        success_rate=options.success_rate,
        discount=options.discount,
        reward_scales=tuple(options.reward_scales),
        off_policy=options.off_policy,
        mismatch=options.mismatch,
        reference_distance=options.reference_distance,
        critic_error=options.critic_error if estimator.needs_critic else 0.0,
    )
    return Setting(method, sampling, worlds, group)


def audit(
    estimators: dict[str, Estimator],
    method: Method,
    sampling: Sampling,
    names: Names,
    options: Audit,
    on_world: Callable[[str], None] = lambda estimator: None,
) -> list[Row]:
    """A row for each estimator, in the same worlds; `on_world` hears of each world that has been counted."""
    rows = []
    for name, estimator in estimators.items():
        for varied in settings_of(options):
            setting = setting_of(replace(method, estimator=estimator), sampling, replace(options, **varied))
            rows.append(_row(name, setting, names, varied, options, lambda name=name: on_world(name)))  # type: ignore[misc]
    return rows


def settings_of(options: Audit) -> list[dict[str, Any]]:
    """What is replaced in the options for each value of the key that is varied; one empty change where none is.

    Raises `UserError` for a key that there is not, or a value that it does not take.
    """
    if not options.vary:
        return [{}]
    ((key, values),) = options.vary.items()
    fields = [field.name for field in dataclasses.fields(options) if field.name not in ("on", "estimators", "vary")]
    if key not in fields:
        raise UserError(f"audit.vary.{key}: no such key; there are {', '.join(fields)}{did_you_mean(key, fields)}")
    for value in values:
        try:
            replace(options, **{key: value})
        except ValidationError as error:
            raise UserError(f"audit.vary.{key}={value}: {error.errors()[0]['msg'].removeprefix('Input ')}") from None
    return [{key: value} for value in values]


def _row(
    name: str, setting: Setting, names: Names, varied: dict[str, Any], options: Audit, on_world: Callable[[], None]
) -> Row:
    seeds = [options.seed + world for world in range(options.worlds)]

    def counted(tried: Setting, seed: int) -> Moments:
        return tried.moments(seed, options.limit, options.samples)

    found = []
    for seed in seeds:
        found.append(counted(setting, seed))
        on_world()
    whole = judged(found)
    if whole.exact:
        return Row(name, names, setting.group, varied, whole, ())
    # Where the first worlds show nothing, those that show most do: a clip may be met in few of them.
    first = judged(found[:TRIED])
    if first.exact:
        worst = sorted(range(len(seeds)), key=lambda i: judged([found[i]]).relative_bias)[-TRIED:]
        seeds, first = [seeds[i] for i in worst], judged([found[i] for i in worst])
    few = seeds[:TRIED]
    blamed = tuple(causes(setting, first, lambda tried: judged([counted(tried, seed) for seed in few])))
    verdict = whole.because([cause.name for cause in blamed], explained=bool(blamed) and blamed[-1].exact)
    return Row(name, names, setting.group, varied, verdict, blamed)
