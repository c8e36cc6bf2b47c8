"""Rewards by judges: language models behind an OpenAI-compatible chat endpoint."""

from tpg.rewards.judging.judge import Judge
from tpg.rewards.judging.pairwise import PairwiseJudge

__all__ = ["Judge", "PairwiseJudge"]
