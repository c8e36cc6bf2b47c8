"""What passes between the process that runs a response's code and the one that tests it: plain data, no pickles."""

import json
import socket
import struct
from collections import deque
from collections.abc import Callable, Iterator
from decimal import Decimal
from fractions import Fraction
from itertools import islice
from typing import Any

LONGEST = 64 * 2**20
"""Bytes of a message."""
MOST_ITEMS = 100_000
"""What is taken from an iterator, which may have no end."""

Strange = Callable[[Any], list[Any]]
"""What stands for a value that is no plain data."""
CONTAINERS: dict[str, Any] = {"list": list, "tuple": tuple, "set": set, "frozenset": frozenset, "deque": deque}


class Channel:
    """Messages over one end of a socket pair."""

    def __init__(self, end: socket.socket) -> None:
        self._end = end

    def send(self, message: Any) -> None:
        """Send what JSON holds."""
        body = json.dumps(message).encode()
        self._end.sendall(struct.pack(">I", len(body)) + body)

    def receive(self) -> Any:
        """Wait for a message. Raises `EOFError` when the other end is gone, `ValueError` for what is no message."""
        (length,) = struct.unpack(">I", self._exactly(4))
        if length > LONGEST:
            raise ValueError(f"a message of {length} bytes")
        return json.loads(self._exactly(length))

    def _exactly(self, count: int) -> bytes:
        parts = bytearray()
        while len(parts) < count:
            part = self._end.recv(min(count - len(parts), 2**16))
            if not part:
                raise EOFError("the other end is gone")
            parts += part
        return bytes(parts)


def encoded(value: Any, strange: Strange) -> Any:
    """Turn a value into what JSON holds; what is no plain data as `strange` says. Subclasses become their base."""
    if value is None or isinstance(value, bool | str):
        return value if value is None or isinstance(value, bool) else str.__str__(value)
    if isinstance(value, int):
        return int.__index__(value)
    if isinstance(value, float):
        return float.__float__(value)
    if isinstance(value, dict):
        pairs = dict.items(value)
        return ["dict", [[encoded(key, strange), encoded(item, strange)] for key, item in pairs]]
    for tag, kind in CONTAINERS.items():
        if isinstance(value, kind):
            return [tag, [encoded(item, strange) for item in kind.__iter__(value)]]
    if isinstance(value, bytes | bytearray):
        return ["bytes", bytes(value).hex()]
    if isinstance(value, complex):
        return ["complex", [value.real, value.imag]]
    if isinstance(value, Decimal):
        return ["Decimal", str(value)]
    if isinstance(value, Fraction):
        return ["Fraction", [value.numerator, value.denominator]]
    if isinstance(value, range):
        return ["range", [value.start, value.stop, value.step]]
    if isinstance(value, Iterator):
        return ["iterator", [encoded(item, strange) for item in islice(value, MOST_ITEMS)]]
    return strange(value)


def decoded(data: Any, strange: Callable[[str, Any], Any]) -> Any:
    """Turn what `encoded` gave back into values; `strange(tag, payload)` makes what is no plain data.

    Raises `ValueError`, `TypeError` or `RecursionError` for what nothing was encoded as.
    """
    if not isinstance(data, list):
        if isinstance(data, dict):
            raise ValueError("no plain data")
        return data
    tag, payload = data
    if tag in CONTAINERS:
        return CONTAINERS[tag](decoded(item, strange) for item in payload)
    if tag == "dict":
        return {decoded(key, strange): decoded(item, strange) for key, item in payload}
    if tag == "iterator":
        return iter([decoded(item, strange) for item in payload])
    if tag in PLAIN:
        return PLAIN[tag](payload)
    return strange(tag, payload)


PLAIN: dict[str, Callable[[Any], Any]] = {
    "bytes": bytes.fromhex,
    "complex": lambda parts: complex(*map(float, parts)),
    "Decimal": lambda text: Decimal(str(text)),
    "Fraction": lambda parts: Fraction(*map(int, parts)),
    "range": lambda parts: range(*map(int, parts)),
}
