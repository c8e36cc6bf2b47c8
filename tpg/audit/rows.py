"""The table of an audit: a row a method."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from tpg.audit.causes import Cause, Setting, causes
from tpg.audit.tabular import Tree, Worlds
from tpg.audit.verdict import Judgement, judged
from tpg.errors import UserError
from tpg.estimators.base import Estimator
from tpg.method import Method
from tpg.rollouts.sampling import Sampling
from tpg.training.options import Audit

TRIED = 3
"""Worlds on which causes are looked for."""


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
    judgement: Judgement
    causes: tuple[Cause, ...]

    def as_dict(self) -> dict[str, Any]:
        """As it is written to audit.json."""
        numbers = {key: value for key, value in asdict(self.judgement).items() if key != "verdict"}
        return {
            "estimator": self.estimator,
            **asdict(self.names),
            "responses_per_prompt": self.group,
            **numbers,
            "verdict": self.judgement.verdict,
            "causes": [asdict(cause) for cause in self.causes],
        }


def setting_of(method: Method, sampling: Sampling, options: Audit) -> Setting:
    """What the options describe. Raises `UserError` when they cannot go together."""
    estimator = method.estimator
    fewest = max(estimator.min_group, 2 if method.objective.needs_groups else 1)
    group = options.responses_per_prompt or fewest
    if group < fewest:
        raise UserError(
            f"audit.responses_per_prompt={group}: {type(estimator).__name__} with {type(method.objective).__name__}"
            f" compares the responses to one prompt and needs at least {fewest}"
        )
    worlds = Worlds(
        tree=Tree(options.vocabulary, options.horizon, options.end),
        prompts=options.prompts,
        reward=options.reward,
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
        setting = setting_of(replace(method, estimator=estimator), sampling, options)
        seeds = [options.seed + world for world in range(options.worlds)]

        def judge(tried: Setting, seeds: Sequence[int] = tuple(seeds[:TRIED]), name: str = name) -> Judgement:
            found = []
            for seed in seeds:
                found.append(tried.moments(seed, options.limit, options.samples))
                on_world(name)
            return judged(found)

        whole = judge(setting, seeds)
        blamed = () if whole.exact else tuple(causes(setting, judge(setting), judge))
        rows.append(Row(name, names, setting.group, whole.because([cause.name for cause in blamed]), blamed))
    return rows
