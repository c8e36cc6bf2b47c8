"""What the judges' options have in common."""

import importlib.util
import os
import re
from abc import ABC, abstractmethod
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, create_model, field_validator

from tpg.component import component
from tpg.errors import UserError
from tpg.rewards.base import LoadedTerm, Sample
from tpg.rewards.judging.rubric import fields, question

NAME = re.compile(r"[A-Z_][A-Z0-9_]*")
RESERVED = {"model", "messages", "temperature", "max_tokens", "response_format", "stream", "n"}
STRICT = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)


@component
class Prices:
    """What a million tokens cost, in any currency."""

    prompt: float = Field(default=0.0, ge=0)
    completion: float = Field(default=0.0, ge=0)


@component
class JudgeOptions(LoadedTerm, ABC):
    """A language model that judges, behind an OpenAI-compatible chat endpoint."""

    base_url: str = "http://localhost:8000/v1"
    model: str
    api_key_env: str | None = None
    """The environment variable that holds the key; None: the endpoint asks for none."""
    system: str | None
    """The system message; None where the judge's chat template knows none."""
    rubric: str
    """The user's message: a text with names of columns in braces."""
    explain: bool = True
    """Let the judge give its reasons before its verdict: tokens for a better verdict."""
    response_format: Literal["json_schema", "json_object", "text"] = "json_schema"
    """How the endpoint is asked for the form of the answer, as the protocol names it; it is checked in any case."""
    temperature: float | None = Field(default=0.0, ge=0)
    max_tokens: int | None = Field(default=512, ge=1)
    extra_body: dict[str, Any] = Field(default_factory=dict)
    """Whatever else the endpoint reads in a request."""
    concurrency: int = Field(default=16, ge=1)
    """Requests that are open at once, of one process."""
    timeout_s: float = Field(default=60.0, gt=0)
    """Of one request, from its first byte to the answer's last."""
    retries: int = Field(default=4, ge=0)
    """Further requests where one failed for a reason that may pass, or its answer was malformed."""
    backoff_s: float = Field(default=1.0, ge=0)
    """Longest wait before the first of them; it doubles with each. The endpoint's own Retry-After comes first."""
    max_wait_s: float = Field(default=60.0, ge=0)
    """Longest wait; where the endpoint asks for a longer one the response is given up."""
    cache: str | None = "outputs/judgements.sqlite"
    """The file that keeps answers; None keeps none, and judges equal responses anew."""
    check_at_start: bool = True
    """Ask for the endpoint's list of models before the run begins."""
    price_per_million_tokens: Prices = Prices()

    @field_validator("base_url")
    @classmethod
    def _is_an_address(cls, address: str) -> str:
        address = address.rstrip("/")
        if not address.startswith(("http://", "https://")):
            raise ValueError("must be an address such as http://localhost:8000/v1")
        return address.removesuffix("/chat/completions")

    @field_validator("extra_body")
    @classmethod
    def _adds(cls, body: dict[str, Any]) -> dict[str, Any]:
        taken = sorted(RESERVED & set(body))
        if taken:
            raise ValueError(f"{taken[0]} is not given here: it is a key of its own, or the judge's own affair")
        return body

    @abstractmethod
    def verdict(self) -> type[BaseModel]:
        """The form of an answer."""

    @abstractmethod
    def form(self) -> str:
        """The same in words."""

    def required_columns(self) -> frozenset[str]:
        """Name the columns that the rubric reads."""
        return fields(self.rubric) - {"prompt", "response", "first", "second"}

    def check(self, key: str) -> None:
        """Raise `UserError` where the client is not installed or the environment has no key."""
        if importlib.util.find_spec("httpx2") is None:
            raise UserError(f'{key}: needs httpx2 to speak with a judge; pip install "tpg[judge]"')
        self.secret(key)

    def secret(self, key: str) -> str | None:
        """The endpoint's key, from the environment. Raises `UserError` when it is not there or cannot be one."""
        if self.api_key_env is None:
            return None
        if not NAME.fullmatch(self.api_key_env):  # it may be the key itself, so that it is not repeated
            raise UserError(
                f"{key}.api_key_env: should be the name of an environment variable in capitals, such as OPENAI_API_KEY,"
                " that holds the key"
            )
        secret = os.environ.get(self.api_key_env, "").strip()
        if not secret:
            raise UserError(
                f"{key}.api_key_env={self.api_key_env}: the judge needs this environment variable, which is not set;"
                " set it to the endpoint's key, or name another"
            )
        if not (secret.isascii() and secret.isprintable() and " " not in secret):
            raise UserError(f"{key}.api_key_env={self.api_key_env}: its value is no key, which is one printable word")
        return secret

    def verdict_with(self, name: str, kind: Any) -> type[BaseModel]:
        """The form of an answer: reasons, unless there are to be none, and then this."""
        wanted: dict[str, Any] = {"reason": (str, ...)} if self.explain else {}
        wanted[name] = (kind, ...)
        return create_model("Verdict", __config__=STRICT, **wanted)

    def form_with(self, name: str, kind: str) -> str:
        """The same in words."""
        reason = '"reason": "<why, in a sentence or two>", ' if self.explain else ""
        return f'{{{reason}"{name}": <{kind}>}}'

    def messages(self, sample: Sample, responses: dict[str, str], form: str) -> list[dict[str, str]]:
        """The chat that ends with what is asked. Raises `LookupError` for a column that the sample has not."""
        known = {**sample.columns, "prompt": sample.prompt}
        if sample.answer is not None:
            known["answer"] = sample.answer
        asked = (
            f"{question(self.rubric, known, responses).strip()}\n\nAnswer with one JSON object and nothing else: {form}"
        )
        system = [] if self.system is None else [{"role": "system", "content": self.system}]
        return [*system, {"role": "user", "content": asked}]

    def body(self, messages: list[dict[str, str]], schema: dict[str, Any]) -> dict[str, Any]:
        """The request, as the protocol has it."""
        body: dict[str, Any] = {"model": self.model, "messages": messages, **self.extra_body}
        if self.temperature is not None:
            body["temperature"] = self.temperature
        if self.max_tokens is not None:
            body["max_tokens"] = self.max_tokens
        if self.response_format == "json_schema":
            described = {"name": "verdict", "strict": True, "schema": schema}
            body["response_format"] = {"type": "json_schema", "json_schema": described}
        elif self.response_format == "json_object":
            body["response_format"] = {"type": "json_object"}
        return body
