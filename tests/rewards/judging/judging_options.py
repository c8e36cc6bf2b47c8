"""Judges for tests: quick to try again, and keeping nothing."""

from judge_server import MODEL

from tpg.rewards.base import Sample
from tpg.rewards.judging import Judge, PairwiseJudge
from tpg.rewards.model import RewardModel

KEY = "reward_model.judge"
QUICK = {"model": MODEL, "system": None, "cache": None, "backoff_s": 0.001, "retries": 2, "explain": False}
SCORED = {**QUICK, "rubric": "{prompt}? {response}"}
COMPARED = {**QUICK, "rubric": "{prompt}? {first} {second}"}


def judge(server, **options):
    return Judge(**{**SCORED, "base_url": server.url, **options})


def pairwise(server, **options):
    return PairwiseJudge(**{**COMPARED, "base_url": server.url, **options})


def sample(response, prompt="p", group=(0, 0), **rest):
    return Sample(prompt=prompt, response=response, group=group, **rest)


def judged(term, *samples):
    """The rewards of samples by this term alone."""
    with RewardModel({"judge": term}, workers=1) as model:
        return model.score(list(samples))
