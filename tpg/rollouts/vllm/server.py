"""A vLLM server that runs elsewhere: `python -m tpg.rollouts.vllm.serve`."""

import contextlib
import json
import tempfile
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tpg.errors import UserError, one_line
from tpg.policies.base import Policy
from tpg.rollouts.engine import no_step
from tpg.rollouts.sampling import Sampling
from tpg.rollouts.vllm.backend import Answer, Backend, OnAnswers, Request, reason_of, unheard
from tpg.rollouts.vllm.weights import shape

AT_ONCE = 256
"""Requests that are open."""
PATIENCE_S = 600.0
STEP_S = 0.2
"""How often the caller is told while the server generates."""


class ServerBackend(Backend):
    """Speaks HTTP with the server; weights go through a folder that both see."""

    advice = "start it by python -m tpg.rollouts.vllm.serve, with the policy's own model"

    def __init__(self, address: str, folder: str | None, policy: Policy) -> None:
        self._address, self._folder = address, folder
        self._shape = json.dumps(shape(policy.model.config))
        self._session = uuid.uuid4().hex[:12]
        self._count = 0
        self.name = f"rollouts by vLLM {self._call('/version', seconds=10)['version']} at {address}"

    def load(self, weights: Iterable[tuple[str, Tensor]]) -> None:
        """See `Backend.load`."""
        from safetensors.torch import save_file

        with tempfile.TemporaryDirectory(prefix="tpg-weights-", dir=self._folder) as folder:
            path = Path(folder) / "weights.safetensors"
            tensors, seen = dict[str, Tensor](), set[int]()
            for name, value in weights:
                value = value.detach().cpu().contiguous()
                tensors[name] = value.clone() if value.data_ptr() in seen else value  # shared ones are refused
                seen.add(value.data_ptr())
            save_file(tensors, path)
            Path(folder).chmod(0o755)
            path.chmod(0o644)  # the server may be another user's
            self._call("/collective_rpc", {"method": "take_weights", "args": [str(path), self._shape]})
        if not self._call("/reset_prefix_cache", {})["success"]:
            raise UserError(f"rollout.server={self._address}: busy with others' requests while the weights change")

    def answer(
        self,
        requests: Sequence[Request],
        sampling: Sampling,
        end_ids: frozenset[int],
        on_step: Callable[[], None] = no_step,
        on_answers: OnAnswers = unheard,
    ) -> list[Answer]:
        """See `Backend.answer`."""
        names = [f"{self._session}-{self._count + i}" for i in range(len(requests))]
        self._count += len(requests)
        pool = ThreadPoolExecutor(min(len(requests), AT_ONCE))
        try:
            futures = [
                pool.submit(self._one, name, request, request.parameters(sampling, end_ids))
                for name, request in zip(names, requests, strict=True)
            ]
            places = {future: i for i, future in enumerate(futures)}
            waiting = set(futures)
            while waiting:
                done, waiting = wait(waiting, timeout=STEP_S, return_when=FIRST_COMPLETED)
                if done:
                    on_answers([places[future] for future in done], [future.result() for future in done])
                on_step()
            return [future.result() for future in futures]
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            with contextlib.suppress(UserError):  # what went wrong first is what is told
                sent = [f"generate-tokens-{name}" for name in names]
                self._call("/inference/v1/abort_requests", {"request_ids": sent})
            raise
        finally:
            pool.shutdown()

    def _one(self, name: str, request: Request, parameters: dict[str, Any]) -> Answer:
        body = {"request_id": name, "token_ids": list(request.token_ids), "sampling_params": parameters}
        (choice,) = self._call("/inference/v1/generate", body)["choices"]
        logprobs = [step["logprob"] for step in choice["logprobs"]["content"]]
        return Answer(choice["token_ids"], logprobs, reason_of(choice["finish_reason"]))

    def _call(self, path: str, body: dict[str, Any] | None = None, seconds: float = PATIENCE_S) -> Any:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self._address + path, data, {"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=seconds) as response:
                return json.loads(response.read() or "null")
        except urllib.error.HTTPError as error:
            told = one_line(error.read().decode(errors="replace"))[:300]
            raise UserError(f"rollout.server={self._address}{path}: {error.code}: {told}; {self.advice}") from error
        except (OSError, ValueError) as error:
            raise UserError(f"rollout.server={self._address}{path}: no answer ({error}); {self.advice}") from error


class TakesWeights:
    """What vLLM's worker learns for `ServerBackend`: to read weights from a file. vLLM itself adds it to its worker."""

    reload_weights: Callable[..., None]
    model_config: Any

    def take_weights(self, path: str, wanted: str) -> None:
        """Replace the weights by those of a safetensors file, of a model with this shape (JSON)."""
        from safetensors import safe_open

        own = shape(self.model_config.hf_config)
        if own != json.loads(wanted):  # vLLM would stop half-way and be of no more use
            raise ValueError(f"the server has another model than the policy's {wanted}: {json.dumps(own)}")
        with safe_open(path, framework="pt") as file, torch.no_grad():
            self.reload_weights(weights_iterator=((name, file.get_tensor(name)) for name in file.keys()))  # noqa: SIM118
