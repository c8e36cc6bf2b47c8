"""vLLM in this process."""

import contextlib
import os
import tempfile
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tpg.errors import UserError, one_line
from tpg.policies.base import Policy
from tpg.rollouts.engine import no_step
from tpg.rollouts.sampling import Sampling
from tpg.rollouts.vllm.backend import Answer, Backend, OnAnswers, Request, reason_of, unheard
from tpg.rollouts.vllm.options import VLLM
from tpg.rollouts.vllm.weights import save_config

ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # weights are handed over without a copy, and nothing is left behind
    "VLLM_USE_V2_MODEL_RUNNER": "0",  # `Drawing` is written for the first
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # the threads are the trainer's too
    "VLLM_NO_USAGE_STATS": "1",
}
CPU_CACHE_GIB = 1.0


class LocalBackend(Backend):
    """The offline engine, stepped by hand."""

    def __init__(self, options: VLLM, policy: Policy, dtype: torch.dtype) -> None:
        self._sleeps = options.sleep
        self._count = 0
        if torch.distributed.is_initialized() and torch.distributed.get_world_size() > 1:
            raise UserError("rollout=vllm: runs in a training of one process; give rollout.server for more")
        with _undisturbed(), tempfile.TemporaryDirectory(prefix="tpg-vllm-") as folder:
            vllm, cpu = _imported()
            save_config(policy, Path(folder))
            self._parameters = vllm.SamplingParams
            self._final = vllm.sampling_params.RequestOutputKind.FINAL_ONLY
            self.name = f"rollouts by vLLM {vllm.__version__} in this process"
            try:
                self._engine = vllm.LLM(folder, **_arguments(options, policy, dtype, cpu)).llm_engine
            except (ValueError, RuntimeError) as error:
                raise UserError(f"rollout=vllm: vLLM does not start: {one_line(error)}") from error

    def load(self, weights: Iterable[tuple[str, Tensor]]) -> None:
        """See `Backend.load`."""
        with _undisturbed():
            try:
                self._engine.collective_rpc("reload_weights", kwargs={"weights_iterator": weights})
            except (KeyError, ValueError) as error:
                raise UserError(f"rollout=vllm: vLLM does not take this model's weights: {error}") from error
        if not self._engine.reset_prefix_cache():
            raise RuntimeError("vLLM kept keys and values of the former weights")

    def answer(
        self,
        requests: Sequence[Request],
        sampling: Sampling,
        end_ids: frozenset[int],
        on_step: Callable[[], None] = no_step,
        on_answers: OnAnswers = unheard,
    ) -> list[Answer]:
        """See `Backend.answer`."""
        names = [str(self._count + i) for i in range(len(requests))]
        self._count += len(requests)
        places = {name: i for i, name in enumerate(names)}
        open_names, found = set[str](), dict[str, Answer]()
        try:
            for name, request in zip(names, requests, strict=True):
                parameters = self._parameters(**request.parameters(sampling, end_ids), output_kind=self._final)
                self._engine.add_request(name, {"prompt_token_ids": list(request.token_ids)}, parameters)
                open_names.add(name)
            while open_names:
                new = {output.request_id: _answer(output.outputs[0]) for output in self._engine.step()}
                found |= new
                open_names -= set(new)
                if new:
                    on_answers([places[name] for name in new], list(new.values()))
                on_step()
        except BaseException:
            self._engine.abort_request(sorted(open_names))
            raise
        return [found[name] for name in names]

    def sleep(self) -> None:
        """See `Backend.sleep`."""
        if self._sleeps:
            self._engine.sleep(2)

    def wake(self) -> None:
        """See `Backend.wake`."""
        if self._sleeps and self._engine.is_sleeping():
            self._engine.wake_up()

    def close(self) -> None:
        """See `Backend.close`."""
        from vllm.distributed import cleanup_dist_env_and_memory

        self._engine.engine_core.shutdown()
        del self._engine
        cleanup_dist_env_and_memory()


def _imported() -> tuple[Any, bool]:
    """vLLM, and whether it runs on a CPU."""
    os.environ.update(ENVIRONMENT)
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    try:
        import vllm
        from vllm.platforms import current_platform
    except (ImportError, RuntimeError) as error:
        raise UserError(f"rollout=vllm: vllm cannot be imported: {one_line(error)}") from error
    if current_platform.is_cpu():
        # One small function would be compiled, which takes longer than it saves and needs a C++ compiler.
        current_platform.simple_compile_backend = "eager"
    return vllm, current_platform.is_cpu()


def _arguments(options: VLLM, policy: Policy, dtype: torch.dtype, cpu: bool) -> dict[str, Any]:
    blocks = {"block_size": 32} if cpu else {}  # 128 by default: shorter prompts would be shared by no group
    cache_gib = options.kv_cache_gib or (CPU_CACHE_GIB if cpu else None)
    return {
        "load_format": "dummy",  # they come with the first generation
        "skip_tokenizer_init": True,
        "generation_config": "vllm",
        "dtype": dtype,
        "max_model_len": longest(options, policy),
        "max_num_seqs": options.batch_responses,
        "gpu_memory_utilization": options.gpu_memory_share,
        "kv_cache_memory_bytes": int(cache_gib * 2**30) if cache_gib else None,
        "enforce_eager": cpu if options.enforce_eager is None else options.enforce_eager,
        "enable_prefix_caching": options.prefix_caching,
        "enable_sleep_mode": options.sleep and not cpu,
        "logits_processors": ["tpg.rollouts.vllm.drawing:Drawing"],
        "logprobs_mode": "processed_logits",
        "async_scheduling": False,  # a row's step is the number of tokens it has
        "disable_log_stats": True,
        **blocks,
    }


def longest(options: VLLM, policy: Policy) -> int:
    """The longest sequence that vLLM has to hold."""
    wanted = options.max_model_len or options.max_prompt_tokens + options.max_response_tokens
    return min(wanted, policy.max_positions or wanted)


def _answer(output: Any) -> Answer:
    logprobs = [step[token].logprob for step, token in zip(output.logprobs, output.token_ids, strict=True)]
    return Answer(list(output.token_ids), logprobs, reason_of(output.finish_reason))


@contextlib.contextmanager
def _undisturbed() -> Iterator[None]:
    """Put back what vLLM, which takes the process for its own, changes of torch's state."""
    set_num_threads, threads = torch.set_num_threads, torch.get_num_threads()
    with torch.random.fork_rng(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            yield
        finally:
            torch.set_num_threads = set_num_threads
            torch.set_num_threads(threads)
