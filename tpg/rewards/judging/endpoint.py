"""Questions to a chat endpoint: so many at once, each within its time, again where that may help."""

import asyncio
import itertools
import json
import random
import sqlite3
import threading
import time
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import Future, wait
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import BaseModel, ValidationError

from tpg.errors import one_line, with_kind
from tpg.redaction import STAR, redacted
from tpg.rewards.base import Failure, Told
from tpg.rewards.judging.cache import AnswerCache, identity
from tpg.rewards.judging.options import JudgeOptions
from tpg.rewards.judging.startup import check_endpoint
from tpg.rewards.judging.unjudged import Unjudged, refusal

if TYPE_CHECKING:
    import httpx2

T = TypeVar("T")
LARGEST_ANSWER = 4 * 2**20
"""Bytes."""
LONGEST_CAUSE = 200
"""Characters of what others say."""
ABSENT = {"unreachable", "timed out", "server error"}
"""While the last response was given up for one of these, the next are asked about once each."""


@dataclass
class Counts:
    """What requests came to."""

    requests: float = 0
    """Those that were answered, whatever the answer."""
    seconds: float = 0.0
    tokens: float = 0.0
    cost: float = 0.0
    cache_hits: float = 0
    retries: float = 0


def verdicts(asked: "Sequence[Future[Any] | Failure]", on_wait: Callable[[], None]) -> list[Any]:
    """Wait for what was asked, calling `on_wait` every second: verdicts, or why there is none."""
    under_way = [each for each in asked if isinstance(each, Future)]
    while wait(under_way, timeout=1).not_done:
        on_wait()
    return [each.result() if isinstance(each, Future) else each for each in asked]


class Endpoint:
    """Asks an endpoint from a thread of its own. Several threads may share it.

    Raises `UserError`, which begins with `key`, when the endpoint, its model, the key or the cache is not to be had.
    """

    def __init__(self, options: JudgeOptions, verdict: type[BaseModel], key: str) -> None:
        import httpx2

        self._options, self._verdict = options, verdict
        self._schema = verdict.model_json_schema()
        self._secret = options.secret(key)
        self._headers = {"Content-Type": "application/json"}
        if self._secret:
            self._headers["Authorization"] = f"Bearer {self._secret}"
        if options.check_at_start:
            check_endpoint(options, self._headers, self._clean, key)
        self._cache = None if options.cache is None else AnswerCache(options.cache, f"{key}.cache")
        self._under_way: dict[str, Future[Any]] = {}
        self._lock = threading.Lock()
        self._counts = Counts()
        self._absent = False
        limits = httpx2.Limits(max_connections=None, max_keepalive_connections=options.concurrency)
        self._client = httpx2.AsyncClient(headers=self._headers, limits=limits, timeout=None)
        self._slots = asyncio.Semaphore(options.concurrency)
        self._loop = asyncio.new_event_loop()
        # A daemon: a run that ends does not wait for answers that nobody will read.
        self._thread = threading.Thread(target=self._loop.run_forever, name=key, daemon=True)
        self._thread.start()

    def ask(self, messages: list[dict[str, str]]) -> "Future[Any]":
        """Begin; the result is a verdict, or a `Failure`. With a cache, equal questions are asked once."""
        body = self._options.body(messages, self._schema)
        name = identity(body)
        with self._lock:
            if name in self._under_way:
                self._counts.cache_hits += 1
                return self._under_way[name]
            future = asyncio.run_coroutine_threadsafe(self._judged(body, name), self._loop)
            if self._cache is not None:
                self._under_way[name] = future
        future.add_done_callback(lambda _: self._under_way.pop(name, None))
        return future

    def metrics(self) -> dict[str, Told]:
        """What requests came to since this was last asked."""
        with self._lock:
            counts, self._counts = self._counts, Counts()
        return {
            "judge_seconds": Told(counts.seconds, counts.requests),
            "judge_tokens": Told(counts.tokens),
            "judge_cost": Told(counts.cost),
            "cache_hits": Told(counts.cache_hits),
            "retries": Told(counts.retries),
        }

    def close(self) -> None:
        """Give up what is under way, and end the thread."""
        if self._loop.is_closed():
            return
        asyncio.run_coroutine_threadsafe(self._end(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    # In the thread

    async def _judged(self, body: dict[str, Any], name: str) -> "BaseModel | Failure":
        async with self._slots:
            try:
                verdict = self._kept(name)
                if verdict is None:
                    return await self._asked(json.dumps(body).encode(), name)
                self._count(cache_hits=1)
                return verdict
            except Unjudged as failed:
                return failed.failure
            except Exception as error:  # no response ends the run
                return Failure("raised", self._clean(with_kind(error)))

    async def _asked(self, content: bytes, name: str) -> BaseModel:
        """Ask until there is a verdict. Raises `Unjudged`, of the last request, when there is none."""
        shares = random.Random(name)
        for attempt in itertools.count():
            try:
                answer = await self._answer(content)
                verdict = self._read(answer)
            except Unjudged as failed:
                absent = failed.failure.reason in ABSENT
                if not failed.again or attempt >= (0 if absent and self._absent else self._options.retries):
                    self._absent = absent
                    raise
                wait = failed.wait_s
                if wait is None:
                    longest = min(self._options.backoff_s * 2**attempt, self._options.max_wait_s)
                    wait = longest * shares.uniform(0.5, 1)  # not all requests at once
                self._count(retries=1)
                await asyncio.sleep(wait)
            else:
                self._absent = False
                self._keep(name, answer)
                return verdict
        raise AssertionError

    async def _answer(self, content: bytes) -> str:
        """What the judge says to one request."""
        import httpx2

        begun = time.monotonic()
        try:
            async with asyncio.timeout(self._options.timeout_s):
                status, headers, data = await self._exchange(content)
        except TimeoutError:
            raise Unjudged("timed out", f"no answer within {self._options.timeout_s:g} s") from None
        except httpx2.DecodingError as error:
            raise Unjudged("malformed", self._clean(str(error))) from None
        except (httpx2.HTTPError, OSError) as error:
            cause = self._clean(str(error)) or type(error).__name__
            raise Unjudged("unreachable", f"{self._options.base_url}: {cause}") from None
        self._count(requests=1, seconds=time.monotonic() - begun)
        if status != 200:
            told = self._clean(data.decode(errors="replace"))
            raise refusal(status, told, headers.get("Retry-After"), self._options.max_wait_s)
        return self._text(data)

    async def _exchange(self, content: bytes) -> "tuple[int, httpx2.Headers, bytes]":
        data = bytearray()
        address = f"{self._options.base_url}/chat/completions"
        async with self._client.stream("POST", address, content=content) as response:
            async for part in response.aiter_bytes():
                data += part
                if len(data) > LARGEST_ANSWER:
                    raise Unjudged("malformed", f"the answer is longer than {LARGEST_ANSWER} bytes")
            return response.status_code, response.headers, bytes(data)

    def _text(self, data: bytes) -> str:
        """The message in a completion, whose tokens are counted whatever it says."""
        try:
            completion = json.loads(data)
            usage = completion.get("usage") or {}
            self._spend(float(usage.get("prompt_tokens") or 0), float(usage.get("completion_tokens") or 0))
            choice = completion["choices"][0]
            text, finish = choice["message"]["content"], choice.get("finish_reason")
        except (ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RecursionError):
            raise Unjudged("malformed", f"no chat completion: {self._clean(data.decode(errors='replace'))}") from None
        if finish == "length":
            raise Unjudged("malformed", f"cut at max_tokens={self._options.max_tokens}: {self._clean(str(text))}")
        if not isinstance(text, str):
            raise Unjudged("malformed", f"no text but {self._clean(json.dumps(choice['message']))}")
        return text

    def _read(self, answer: str) -> BaseModel:
        try:
            return self._verdict.model_validate_json(answer)
        except ValidationError as error:
            first = error.errors(include_url=False, include_context=False)[0]
            where = ".".join(str(part) for part in first["loc"])
            told = f"{where}: {first['msg']}" if where else first["msg"]
            raise Unjudged("malformed", f"{one_line(told)}, in {self._clean(answer)}") from None

    def _kept(self, name: str) -> BaseModel | None:
        answer = None if self._cache is None else self._of_cache(self._cache.get, name)
        with suppress(Unjudged):  # then the file was changed: ask anew
            return None if answer is None else self._read(answer)
        return None

    def _keep(self, name: str, answer: str) -> None:
        if self._cache is not None:
            self._of_cache(self._cache.put, name, answer)

    def _of_cache(self, call: Callable[..., T], *arguments: str) -> T | None:
        """Do without it from the first error on: no answer is lost for a full disk."""
        try:
            return call(*arguments)
        except sqlite3.Error as error:
            warnings.warn(f"the judge's cache {self._options.cache} is not used any more: {error}", stacklevel=2)
            self._cache = None
            return None

    def _count(self, **more: float) -> None:
        with self._lock:
            for name, value in more.items():
                setattr(self._counts, name, getattr(self._counts, name) + value)

    def _spend(self, prompt: float, completion: float) -> None:
        prices = self._options.price_per_million_tokens
        cost = (prompt * prices.prompt + completion * prices.completion) / 1e6
        self._count(tokens=prompt + completion, cost=cost)

    def _clean(self, text: str) -> str:
        """A text of others in one short line, without the key."""
        if self._secret:
            text = text.replace(self._secret, STAR)
        return one_line(redacted(text))[:LONGEST_CAUSE]

    async def _end(self) -> None:
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        await self._client.aclose()
        if self._cache is not None:
            self._cache.close()
