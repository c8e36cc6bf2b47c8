"""The process that runs a response's code: it knows no test, and answers what it is asked with plain data."""

import builtins
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from tpg.rewards.code.wire import Channel, decoded, encoded

SHOWN: dict[str, Callable[[Any], Any]] = {"iterate": iter, "length": len, "text": str, "show": repr}


class Objects:
    """The response's own functions and objects, which stay here and are spoken of by number."""

    def __init__(self) -> None:
        self._kept: list[Any] = []
        self._numbers: dict[int, int] = {}

    def keep(self, value: Any) -> list[Any]:
        """Give what stands for it."""
        if id(value) not in self._numbers:
            self._numbers[id(value)] = len(self._kept)
            self._kept.append(value)
        return ["object", self._numbers[id(value)]]

    def find(self, number: int) -> Any:
        """Look one up."""
        return self._kept[number]


class Server:
    """The response's code as a module, and what is asked of it."""

    def __init__(self, code: str, channel: Channel) -> None:
        self._code = code
        self._channel = channel
        self._objects = Objects()
        self._namespace: dict[str, Any] = {"__name__": "response", "__builtins__": builtins}

    def run(self) -> None:
        """Do what is asked until the other end is gone."""
        sys.set_int_max_str_digits(0)
        with suppress(EOFError):
            while True:
                self._respond(self._channel.receive())

    def _respond(self, request: list[Any]) -> None:
        try:
            reply = ["value", *self._do(*request)]
        except BaseException as error:
            reply = ["raised", type(error).__name__, str(error)[:200]]
        self._channel.send(reply)

    def _do(self, what: str, *rest: Any) -> list[Any]:
        if what == "names":
            exec(compile(self._code, "response", "exec"), self._namespace)
            return [self._out(list(self._namespace))]
        if what == "name":
            return [self._out(self._namespace[rest[0]])]
        owner = self._objects.find(rest[0])
        if what == "call":
            given, named = self._in(rest[1]), self._in(rest[2])
            value = self._out(owner(*given, **named))
            return [value, self._out(given)]
        if what == "attribute":
            return [self._out(getattr(owner, rest[1]))]
        return [self._out(SHOWN[what](owner))]

    def _out(self, value: Any) -> Any:
        return encoded(value, self._objects.keep)

    def _in(self, data: Any) -> Any:
        return decoded(data, lambda tag, number: self._objects.find(number) if tag == "object" else self._asker(number))

    def _asker(self, number: int) -> Callable[..., Any]:
        """What stands for a function of the test's own."""

        def ask(*arguments: Any, **named: Any) -> Any:
            self._channel.send(["callback", number, self._out(arguments), self._out(named)])
            while (reply := self._channel.receive())[0] not in ("value", "raised"):
                self._respond(reply)
            if reply[0] == "raised":
                raise RuntimeError(f"{reply[1]}: {reply[2]}")
            return self._in(reply[1])

        return ask


def run_program(code: str) -> None:
    """Run the code as a program that reads standard input; how it ends is how this process does."""
    exec(compile(code, "response", "exec"), {"__name__": "__main__", "__builtins__": builtins})
