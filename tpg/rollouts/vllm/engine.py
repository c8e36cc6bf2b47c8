"""The engine: weights are handed over and checked, then vLLM generates."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from tpg.errors import UserError
from tpg.policies.base import Policy
from tpg.rollouts.engine import Engine, Finished, OnFinished, Prefix, assembled, expanded, no_step
from tpg.rollouts.sampling import Sampling
from tpg.rollouts.vllm.backend import Answer, Backend, Request
from tpg.rollouts.vllm.local import LocalBackend, longest
from tpg.rollouts.vllm.options import VLLM
from tpg.rollouts.vllm.server import ServerBackend
from tpg.rollouts.vllm.weights import merged_weights, signature
from tpg.trajectories import Trajectories

NEAR = {torch.float32: 0.01, torch.float16: 0.05, torch.bfloat16: 0.2}
"""How far vLLM's log-probabilities may be from the policy's on average, nats a token."""
CHECKED_TOKENS = 4


class VLLMEngine(Engine):
    """vLLM with the policy's weights."""

    options: VLLM

    def __init__(self, options: VLLM, policy: Policy) -> None:
        super().__init__(options, policy)
        self._longest = longest(options, policy)
        self._backend: Backend | None = None
        self._loaded: tuple[object, ...] | None = None
        self._held = False
        if options.server is not None:
            self._backend = ServerBackend(options.server, options.server_folder, policy)

    @property
    def beside_trainer(self) -> bool:
        """See `Engine.beside_trainer`: a server does; in this process one waits for the other."""
        return self.options.server is not None

    @property
    def note(self) -> str:
        """See `Engine.note`."""
        own = "vLLM starts in this process at the first rollout" if self._backend is None else self._backend.name
        return "; ".join(filter(None, [own, super().note]))

    @torch.no_grad()
    def hold(self) -> None:
        """See `Engine.hold`."""
        self._sync(self._running())
        self._held = True

    @torch.no_grad()
    def generate(
        self,
        prefixes: Sequence[Prefix],
        sampling: Sampling,
        *,
        version: int = 0,
        on_step: Callable[[], None] = no_step,
        retain: bool = False,
        on_finished: OnFinished | None = None,
    ) -> Trajectories:
        """See `Engine.generate`; what is retained is up to prefix caching."""
        if not prefixes:
            return assembled([], [], [], [], self.policy, version)
        rows = expanded(prefixes)
        requests = []
        for row in rows:
            ids = (*row.prefix.prompt_ids, *row.prefix.response_ids)
            if len(ids) + row.prefix.max_tokens > self._longest:
                raise UserError(
                    f"rollout.max_model_len: {len(ids)} tokens and {row.prefix.max_tokens} new ones do not fit into"
                    f" {self._longest} (the policy was made for {self.policy.max_positions or 'any number'})"
                )
            requests.append(Request(ids, row.prefix.max_tokens, row.key))

        def told(places: Sequence[int], answers: Sequence[Answer]) -> None:
            if on_finished is not None:
                new = zip(places, answers, strict=True)
                on_finished([Finished(i, (*rows[i].prefix.response_ids, *a.token_ids), a.reason) for i, a in new])

        backend = self._running()
        backend.wake()
        try:
            if not self._held:
                self._sync(backend)
            answers = backend.answer(requests, sampling, self.policy.end_ids, on_step, told)
        finally:
            self._held = False
            if self.options.sleep:
                backend.sleep()
                self._loaded = None
        finish = [answer.reason for answer in answers]
        logprobs = [torch.tensor(answer.logprobs) for answer in answers]
        return assembled(rows, [answer.token_ids for answer in answers], logprobs, finish, self.policy, version)

    def close(self) -> None:
        """See `Engine.close`."""
        if self._backend is not None:
            self._backend.close()
        self._backend = self._loaded = None

    def _dtype(self) -> torch.dtype:
        """What vLLM computes in."""
        device, wanted = self.policy.device.type, self.options.dtype
        if wanted == "auto" and torch.is_autocast_enabled(device):
            return torch.get_autocast_dtype(device)
        held: torch.dtype = next(self.policy.model.parameters()).dtype
        return held if wanted in ("auto", "policy") else getattr(torch, wanted)

    def _running(self) -> Backend:
        if self._backend is None:
            self._backend = LocalBackend(self.options, self.policy, self._dtype())
        return self._backend

    def _sync(self, backend: Backend) -> None:
        """Hand the weights over if they have changed, and see whether they have arrived."""
        current = signature(self.policy)
        if current == self._loaded:
            return
        self._loaded = None
        backend.load(merged_weights(self.policy))
        gap, near = self._gap(backend), max(NEAR[self._dtype()], NEAR[next(self.policy.model.parameters()).dtype])
        if not gap <= near:
            raise UserError(
                f"rollout=vllm: with the policy's weights vLLM's log-probabilities are {gap:.3g} nats a token from the"
                f" policy's, and {near} is allowed: it computes another model; {backend.advice}"
            )
        self._loaded = current

    def _gap(self, backend: Backend) -> float:
        """Mean distance of log-probabilities on continuations of two fixed prompts."""
        vocabulary = self.policy.model.config.get_text_config().vocab_size
        tokens = min(CHECKED_TOKENS, self._longest - 1)
        prompts = [tuple((7 * i + n) % vocabulary for i in range(n)) for n in {1, min(7, self._longest - tokens)}]
        answers = backend.answer([Request(prompt, tokens, key=0) for prompt in prompts], Sampling(), frozenset())
        gaps = [
            (self._logprobs(prompt, answer.token_ids) - torch.tensor(answer.logprobs)).abs()
            for prompt, answer in zip(prompts, answers, strict=True)
        ]
        return float(torch.cat(gaps).mean())

    def _logprobs(self, prompt: tuple[int, ...], new_ids: list[int]) -> Tensor:
        """The policy's own, (tokens,)."""
        ids_1S = torch.tensor([[*prompt, *new_ids]], device=self.policy.device)
        with torch.autocast(self.policy.device.type, enabled=False):
            logits_SV = self.policy.model(input_ids=ids_1S, use_cache=False).logits[0].float()
        logprobs_TV = logits_SV[len(prompt) - 1 : -1].log_softmax(-1)
        return logprobs_TV.gather(-1, ids_1S[0, len(prompt) :, None])[:, 0].cpu()
