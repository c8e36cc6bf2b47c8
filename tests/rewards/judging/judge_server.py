"""A chat endpoint of the tests' own, or a proxy before a real one, with faults as they are asked for."""

import json
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

MODEL = "judge-of-tests"
USAGE = {"prompt_tokens": 100, "completion_tokens": 20}


@dataclass(frozen=True)
class Status:
    """An answer with a status of its own."""

    status: int
    text: str = "no"
    headers: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Says:
    """A proper completion, whatever its text."""

    text: str | None
    finish_reason: str = "stop"


@dataclass(frozen=True)
class Body:
    """Status 200 with any text."""

    text: str


@dataclass(frozen=True)
class Slow:
    """Nothing for so many seconds; then the usual answer."""

    seconds: float


@dataclass(frozen=True)
class Drip:
    """A byte of an answer that never ends, so many seconds apart."""

    seconds: float


@dataclass(frozen=True)
class Drop:
    """The connection ends without an answer."""


class JudgeServer:
    """Meets the requests that it gets with the faults of `script`, one after another, and answers the others.

    `answer` makes the text of a completion from the user's message; with an `upstream` requests go there instead.
    """

    def __init__(self, answer: Callable[[str], str] | None = None, upstream: str | None = None) -> None:
        self.answer = answer or (lambda asked: '{"score": 7}')
        self.upstream = upstream
        self.script: list[Any] = []
        self.always: Any = None
        self.models_answer: Any = None
        self.key: str | None = None
        self.bodies: list[dict[str, Any]] = []
        self.times: list[float] = []
        self.open = self.most_open = 0
        self.lock = threading.Lock()
        self.stopping = threading.Event()
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), handler(self))
        self._http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._http.server_port}/v1"
        self._thread = threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.02})
        self._thread.start()

    @property
    def asked(self) -> list[str]:
        """The user's messages, in the order of their coming."""
        return [body["messages"][-1]["content"] for body in self.bodies]

    def stop(self) -> None:
        """Refuse connections from now on."""
        self.stopping.set()
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()

    def next(self, body: dict[str, Any]) -> Any:
        with self.lock:
            self.bodies.append(body)
            self.times.append(time.monotonic())
            self.open += 1
            self.most_open = max(self.most_open, self.open)
            return self.script.pop(0) if self.script else self.always

    def done(self) -> None:
        with self.lock:
            self.open -= 1


def completion(text: str | None, finish_reason: str = "stop") -> str:
    message = {"role": "assistant", "content": text}
    return json.dumps({"choices": [{"message": message, "finish_reason": finish_reason}], "usage": USAGE})


def handler(judge: JudgeServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            pass

        def do_GET(self) -> None:
            if judge.key is not None and self.headers["Authorization"] != f"Bearer {judge.key}":
                return self.send(401, f"wrong key: {self.headers['Authorization']}")
            if judge.models_answer is not None:
                return self.send(judge.models_answer.status, judge.models_answer.text)
            if judge.upstream is not None:
                return self.forward(None)
            return self.send(200, json.dumps({"data": [{"id": MODEL}]}))

        def do_POST(self) -> None:
            data = self.rfile.read(int(self.headers["Content-Length"]))
            if judge.stopping.is_set():  # on a connection from before
                self.close_connection = True
                return
            fault = judge.next(json.loads(data))
            try:
                self.meet(fault, data)
            except (BrokenPipeError, ConnectionResetError):
                pass  # who asked has gone
            finally:
                judge.done()

        def meet(self, fault: Any, data: bytes) -> None:
            if isinstance(fault, Drop):
                self.close_connection = True
            elif isinstance(fault, Status):
                self.send(fault.status, fault.text, fault.headers)
            elif isinstance(fault, Body):
                self.send(200, fault.text)
            elif isinstance(fault, Says):
                self.send(200, completion(fault.text, fault.finish_reason))
            elif isinstance(fault, Drip):
                self.send_response(200)
                self.send_header("Content-Length", "1000000")
                self.end_headers()
                while not judge.stopping.wait(fault.seconds):
                    self.wfile.write(b" ")
            else:
                if isinstance(fault, Slow):
                    judge.stopping.wait(fault.seconds)
                if judge.upstream is not None:
                    self.forward(data)
                else:
                    asked = json.loads(data)["messages"][-1]["content"]
                    self.send(200, completion(judge.answer(asked)))

        def forward(self, data: bytes | None) -> None:
            address = judge.upstream + self.path.removeprefix("/v1")
            request = urllib.request.Request(address, data, {"Content-Type": "application/json"})
            try:
                with urllib.request.urlopen(request, timeout=300) as response:
                    self.send(response.status, response.read().decode())
            except urllib.error.HTTPError as error:
                self.send(error.code, error.read().decode())

        def send(self, status: int, text: str, headers: dict[str, str] | None = None) -> None:
            data = text.encode()
            self.send_response(status)
            for name, value in (headers or {}).items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

    return Handler
