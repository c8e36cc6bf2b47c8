"""The process that runs a test: what the test asks of the response is answered by another process, with plain data.

So nothing that the response does to its own interpreter (`AssertionError`, `__eq__`, `builtins`, `sys.exit`, the frames
above it) is anything that the test sees.
"""

import ast
import builtins
import importlib
import sys
from collections.abc import Callable
from typing import Any

from tpg.rewards.code.wire import Channel, decoded, encoded


class Unjudgeable(BaseException):
    """Why a test cannot be run, whatever the response is."""


class Gone(BaseException):
    """The process that runs the response has ended, or talks nonsense; no `except Exception` of a test hides it."""


class Remote:
    """A function or an object of the response's own. It equals itself alone, and takes part in no arithmetic."""

    def __init__(self, session: "Session", number: int) -> None:
        self._session, self._number = session, number

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        """Call it there."""
        return self._session.call(self._number, arguments, named)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return self._session.ask("attribute", self._number, name)

    def __iter__(self) -> Any:
        return iter(self._session.ask("iterate", self._number))

    def __len__(self) -> int:
        return len(range(self._session.ask("length", self._number)))

    def __bool__(self) -> bool:
        return True

    def __str__(self) -> str:
        return str(self._session.ask("text", self._number))

    def __repr__(self) -> str:
        return str(self._session.ask("show", self._number))


class Session:
    """What a test asks of the process that runs the response."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._remotes: dict[int, Remote] = {}
        self._functions: list[Callable[..., Any]] = []

    def ask(self, what: str, *rest: Any) -> Any:
        """Ask and wait. Raises what the response raised, if that is an exception of Python's own."""
        return self._value(self._reply([what, *rest])[1])

    def call(self, number: int, arguments: tuple[Any, ...], named: dict[str, Any]) -> Any:
        """Call a function; what it changed in lists, dicts and sets that it was given is changed in them."""
        sent = [encoded(each, self._strange) for each in arguments]
        names = encoded(named, self._strange)
        reply = self._reply(["call", number, ["list", sent], names])
        value, after = self._value(reply[1]), self._value(reply[2])
        if isinstance(after, list):
            for mine, theirs, before in zip(arguments, after, sent, strict=False):
                if encoded(theirs, self._strange) != before:
                    _overwrite(mine, theirs)
        return value

    def _reply(self, message: list[Any]) -> list[Any]:
        try:
            self._channel.send(message)
            while (reply := self._channel.receive())[0] == "callback":
                self._channel.send(self._called(*reply[1:]))
        except (OSError, EOFError, ValueError, TypeError, IndexError, KeyError, RecursionError) as error:
            raise Gone(str(error)) from None
        if reply[0] == "raised":
            raise _exception(str(reply[1]), str(reply[2]))
        return reply

    def _called(self, number: int, arguments: Any, named: Any) -> list[Any]:
        """What a function of the test's own says to the response that calls it."""
        function = self._functions[number]
        given, names = self._value(arguments), self._value(named)
        try:
            return ["value", encoded(function(*given, **names), self._strange)]
        except Exception as error:
            return ["raised", type(error).__name__, str(error)]

    def _value(self, data: Any) -> Any:
        try:
            return decoded(data, self._remote)
        except Exception as error:
            raise Gone(str(error)) from None

    def _remote(self, tag: str, payload: Any) -> Any:
        if tag == "function":
            return self._functions[payload]
        return self._remotes.setdefault(int(payload), Remote(self, int(payload)))

    def _strange(self, value: Any) -> list[Any]:
        if isinstance(value, Remote):
            return ["object", value._number]
        if callable(value):
            self._functions.append(value)
            return ["function", len(self._functions) - 1]
        raise Unjudgeable(
            f"the test hands the response an object of type {type(value).__name__}, which is no plain data"
        )


def passes(test: str, channel: Channel) -> bool:
    """Run a test's statements. Raises `Unjudgeable` for what is no Python, or cannot be asked of a response."""
    sys.set_int_max_str_digits(0)
    try:
        tree = ast.parse(test)
        code = compile(tree, "test", "exec")
    except (SyntaxError, ValueError) as error:
        raise Unjudgeable(f"the test is no Python: {error}") from None
    if not tree.body:
        raise Unjudgeable("the test is empty")
    session = Session(channel)
    try:
        exec(code, _namespace(tree, session))
    except Unjudgeable:
        raise
    except BaseException:
        return False
    return True


def _namespace(tree: ast.Module, session: Session) -> dict[str, Any]:
    """What the test's names stand for: neither Python's own nor its modules are taken from the response."""
    read = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)} - set(dir(builtins))
    with_attributes = {
        node.value.id for node in ast.walk(tree) if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)
    }
    modules = read & with_attributes & sys.stdlib_module_names
    namespace: dict[str, Any] = {name: importlib.import_module(name) for name in sorted(modules)}
    theirs = session.ask("names")
    if not isinstance(theirs, list):
        raise Gone("no names")
    for name in sorted((read - modules) & {name for name in theirs if isinstance(name, str)}):
        namespace[name] = session.ask("name", name)
    return {**namespace, "__name__": "test", "__builtins__": builtins}


def _overwrite(mine: Any, theirs: Any) -> None:
    if isinstance(mine, list) and isinstance(theirs, list):
        mine[:] = theirs
    elif isinstance(mine, dict | set) and type(mine) is type(theirs):
        mine.clear()
        mine.update(theirs)


def _exception(name: str, message: str) -> Exception:
    kind = getattr(builtins, name, None)
    if isinstance(kind, type) and issubclass(kind, Exception):
        try:
            return kind(message)
        except TypeError:  # some need more than a message
            pass
    return RuntimeError(f"{name}: {message}")


def same_output(found: str, wanted: str) -> bool:
    """Whether a program printed what it should: white space at the ends of lines and of the whole aside."""
    lines, others = ([line.rstrip() for line in text.strip().splitlines()] for text in (found, wanted))
    return lines == others
