"""Generation by vLLM, in this process or on a server, with the weights that the policy has at each call."""

from tpg.rollouts.vllm.options import VLLM

__all__ = ["VLLM"]
