"""vLLM as a config option."""

import importlib.util
from typing import TYPE_CHECKING, Literal

from pydantic import Field, field_validator

from tpg.component import component
from tpg.errors import UserError
from tpg.policies.base import Policy
from tpg.rollouts.engine import RolloutOptions

if TYPE_CHECKING:
    from tpg.rollouts.vllm.engine import VLLMEngine


@component
class VLLM(RolloutOptions):
    """vLLM: paged attention, continuous batching and prefix caching. (arXiv 2309.06180.)

    Tokens are drawn by the same numbers and the same rule as by the other engines, and log-probabilities are recorded
    alike. Adapters are merged into the weights that vLLM is given.
    """

    batch_responses: int = Field(default=256, ge=1)
    """Responses decoded at once."""
    dtype: Literal["auto", "policy", "float32", "bfloat16", "float16"] = "auto"
    """Of vLLM's copy of the weights: that of the trainer's mixed precision, as the policy is held, or a dtype. For a
    server it says what that was started with.
    """
    gpu_memory_share: float = Field(default=0.4, gt=0, le=1)
    """Part of a GPU's memory for weights and key-value cache; the rest is the trainer's."""
    kv_cache_gib: float | None = Field(default=None, gt=0)
    """Key-value cache; None takes what `gpu_memory_share` leaves, on a CPU 1 GiB."""
    max_model_len: int | None = Field(default=None, ge=2)
    """Longest sequence; None is `max_prompt_tokens` + `max_response_tokens`."""
    enforce_eager: bool | None = None
    """No compilation and no CUDA graphs; None compiles on a GPU alone."""
    prefix_caching: bool = True
    """Keys and values of a prefix are computed once for all its continuations, until the weights change."""
    sleep: bool = False
    """Free the GPU's memory between generations; what prefix caching holds goes with it. A CPU keeps everything."""
    server: str | None = None
    """Address of a running server, http://host:port, instead of an engine in this process."""
    server_folder: str | None = None
    """Where weights are handed to the server, which reads the same path; None is a temporary folder."""

    @field_validator("server")
    @classmethod
    def _is_an_address(cls, server: str | None) -> str | None:
        if server is not None and not server.startswith(("http://", "https://")):
            raise ValueError("must be an address such as http://localhost:8000")
        return server.rstrip("/") if server else server

    def check(self) -> None:
        """Raise `UserError` where vLLM is to run in this process and is missing."""
        if self.server is None and importlib.util.find_spec("vllm") is None:
            raise UserError(
                "rollout=vllm: needs vllm, which asks for a transformers of its own: in an environment of its own,"
                ' pip install "tpg[vllm]" (without a GPU: see docs/recipes.md); or name a server in rollout.server'
            )

    def other_precision(self, precision: str) -> str | None:
        """See `RolloutOptions.other_precision`."""
        if self.dtype == "auto":
            return None
        if self.dtype == "policy":
            return "the policy's own dtype" if precision.endswith("-mixed") else None
        computes = {"bf16": "bfloat16", "16": "float16"}.get(precision.split("-")[0], "float32")
        return None if self.dtype == computes else self.dtype

    def build(self, policy: Policy) -> "VLLMEngine":
        """See `RolloutOptions.build`. Asks a server whether it is there; in this process vLLM starts when needed."""
        from tpg.rollouts.vllm.engine import VLLMEngine

        return VLLMEngine(self, policy)
