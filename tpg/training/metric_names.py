"""The names of what runs log; docs/metrics.md tells what each means."""

import re
from collections.abc import Iterable

TOLD = (
    "rewards/{term}/nearest",
    "rewards/{term}/raw_mean",
    "rewards/{term}/clipped",
    "rewards/{term}/judge_seconds",
    "rewards/{term}/judge_tokens",
    "rewards/{term}/judge_cost",
    "rewards/{term}/judge_disagreement",
    "rewards/{term}/cache_hits",
    "rewards/{term}/retries",
)
"""What loaded terms tell of themselves, in training and on held-out prompts."""
NAMES = (
    "reward",
    "reward_std",
    "frac_reward_zero_std",
    "rewards/{term}/mean",
    "rewards/{term}/std",
    "rewards/{term}/unscored",
    "rewards/{term}/frac_unscored",
    "rewards/{term}/weight",
    "rewards/{term}/correlation",
    "rewards/{term}/share",
    "rewards/{term}/passed",
    *TOLD,
    "completions/mean_length",
    "completions/max_length",
    "completions/clipped_ratio",
    "completions/unscored",
    "completions/dropped",
    "completions/masked",
    "completions/updated",
    "entropy",
    "curriculum/all_solved",
    "curriculum/none_solved",
    "curriculum/mixed",
    "curriculum/rounds",
    "curriculum/prompts_drawn",
    "curriculum/dropped_groups",
    "curriculum/surplus_groups",
    "curriculum/missing_groups",
    "curriculum/unhinted_reward",
    "curriculum/failed_groups",
    "curriculum/without_hint",
    "curriculum/hinted/{level}",
    "curriculum/expected_success",
    "curriculum/open_share",
    "continuations/unscored",
    "loss",
    "grad_norm",
    "update/skipped_steps",
    "learning_rate",
    "ratio",
    "clip_ratio/region_mean",
    "kl",
    "kl_coefficient",
    "sampling/sampling_logp_difference/mean",
    "sampling/sampling_logp_difference/max",
    "mismatch/mean",
    "mismatch/max",
    "mismatch/ess",
    "rollout/staleness",
    "critic/explained_variance",
    "critic/value_mean",
    "critic/loss",
    "critic/grad_norm",
    "critic/warmup",
    "gradient/snr",
    "gradient/noise_scale",
    "gradient/step_factor",
    "shadow/{name}/cosine",
    "shadow/{name}/scale",
    "shadow/{name}/variance_ratio",
    "eval/reward",
    "eval/pass@1",
    "eval/pass@k",
    "eval/maj@k",
    "eval/mean_length",
    "eval/clipped_ratio",
    "eval/unscored",
    *(f"eval/{name}" for name in TOLD),
    "num_tokens",
    "num_tokens/greedy",
    "num_tokens/continuations",
    "step_time",
    "timing_s/rollout",
    "timing_s/reward",
    "timing_s/estimate",
    "timing_s/update",
    "timing_s/shadow",
    "timing_s/record",
    "perf/throughput",
)
"""`{term}` and `{name}` stand for names of the config, `{level}` and `k` behind an @ for numbers."""


def is_known(metric: str) -> bool:
    """Whether a run of some config logs a metric of this name."""
    return any(_pattern(name).fullmatch(metric) for name in NAMES)


def metric_names(
    terms: Iterable[str], shadows: Iterable[str], responses_per_prompt: int, levels: Iterable[str] = ()
) -> list[str]:
    """All names with those of a config put in."""
    own = {"{term}": list(terms), "{name}": list(shadows), "@k": [f"@{responses_per_prompt}"]}
    own["{level}"] = list(levels)
    found = []
    for name in NAMES:
        placeholder = next((each for each in own if each in name), None)
        found += [name] if placeholder is None else [name.replace(placeholder, each) for each in own[placeholder]]
    return found


def _pattern(name: str) -> re.Pattern[str]:
    text = re.escape(name).replace(r"\{term\}", "[^/]+").replace(r"\{name\}", "[^/]+")
    text = text.replace(r"\{level\}", r"[\d.]+")
    return re.compile(re.sub(r"@k$", r"@\\d+", text))
