"""The program that holds a response's code and runs tests on it: a job on standard input, verdicts on standard output.

The job: a line of JSON, then each test as its length in bytes, a line end, and JSON. Verdicts: a line of JSON a test.
The process that runs the response is forked before the test is read, so that it never holds one.
"""

import json
import os
import select
import signal
import socket
import sys
import time
from contextlib import suppress
from typing import Any

from tpg.rewards.code import isolation
from tpg.rewards.code.candidate import Server, run_program
from tpg.rewards.code.judge import Unjudgeable, passes, same_output
from tpg.rewards.code.wire import Channel

LARGEST_OUTPUT = 16 * 2**20


def main() -> None:
    """Isolate, then run the tests in turn."""
    isolation.die_with_parent(int(sys.argv[1]))
    job: dict[str, Any] = json.loads(_line(0))
    if job["isolated"]:
        isolation.enter_namespaces()
        child = os.fork()
        if child:
            os.close(0)
            sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
        isolation.control(isolation.PARENT_DEATH_SIGNAL, signal.SIGKILL)
        isolation.remember_maps()
        isolation.enter_root(job["base"], isolation.libraries(job["installed_packages"]))
    else:
        isolation.control(isolation.CHILD_SUBREAPER, 1)
    for name in set(os.environ) - {"LANG", "TMPDIR"}:
        del os.environ[name]
    sys.path[:] = [path for path in sys.path if path not in job["hidden_paths"]]
    ends = time.monotonic() + job["total_s"]
    for number in range(job["tests"]):
        seconds = min(job["test_s"], ends - time.monotonic())
        verdict = {"passed": False} if seconds <= 0 else _tested(job, number, seconds)
        os.write(1, json.dumps(verdict).encode() + b"\n")


def _line(descriptor: int) -> bytes:
    """Read a line without reading further."""
    parts = bytearray()
    while not parts.endswith(b"\n"):
        part = os.read(descriptor, 1)
        if not part:
            raise EOFError("the job ends too early")
        parts += part
    return bytes(parts)


def _exactly(descriptor: int, count: int) -> bytes:
    parts = bytearray()
    while len(parts) < count:
        part = os.read(descriptor, count - len(parts))
        if not part:
            raise EOFError("the job ends too early")
        parts += part
    return bytes(parts)


def _tested(job: dict[str, Any], number: int, seconds: float) -> dict[str, Any]:
    """One test in processes of its own, none of which is left."""
    if job["isolated"]:
        isolation.fresh_work(job["file_mb"])
    else:
        os.makedirs(f"{job['base']}/{number}")
        os.chdir(f"{job['base']}/{number}")
    reading, writing = os.pipe()
    judge = os.fork()
    if judge == 0:
        os.close(reading)
        _judge(job, writing)
    os.close(writing)
    verdict = _verdict(reading, seconds)
    os.close(reading)
    _end_all(job["isolated"])
    os.chdir("/")
    if job["isolated"]:
        isolation.leave_work()
    return verdict


def _verdict(reading: int, seconds: float) -> dict[str, Any]:
    """What the judge says; nothing, or not in time, is that the test is not passed."""
    said, ends = bytearray(), time.monotonic() + seconds
    while not said.endswith(b"\n"):
        if not select.select([reading], [], [], max(0.0, ends - time.monotonic()))[0]:
            return {"passed": False}
        part = os.read(reading, 4096)
        if not part:
            return {"passed": False}
        said += part
    verdict: dict[str, Any] = json.loads(said)
    return verdict


def _end_all(isolated: bool) -> None:
    """Kill whatever the test has started and left."""
    if isolated and os.getpid() == 1:  # else this would end every process of the user's
        with suppress(ProcessLookupError):
            os.kill(-1, signal.SIGKILL)
    while True:
        if not isolated:
            for child in _children():
                with suppress(ProcessLookupError):
                    os.kill(child, signal.SIGKILL)
        try:
            os.waitpid(-1, 0)
        except ChildProcessError:
            return


def _children() -> list[int]:
    """The processes that this one has started, or that have come to it as their parents ended."""
    own, found = os.getpid(), []
    for name in filter(str.isdigit, os.listdir("/proc")):
        with suppress(OSError), open(f"/proc/{name}/stat") as file:
            if int(file.read().rpartition(")")[2].split()[1]) == own:
                found.append(int(name))
    return found


def _judge(job: dict[str, Any], verdicts: int) -> None:
    """Start the process that runs the response, read the test, judge."""
    verdict: dict[str, Any] = {"passed": False}
    try:
        isolation.control(isolation.PARENT_DEATH_SIGNAL, signal.SIGKILL)
        mine, theirs = socket.socketpair()
        printed, printing = os.pipe()
        if job["isolated"]:
            isolation.new_process_namespace()
        candidate = os.fork()
        if candidate == 0:
            _candidate(job, theirs, printing)
        theirs.close()
        os.close(printing)
        test = json.loads(_exactly(0, int(_line(0))))
        null = os.open("/dev/null", os.O_RDWR)
        for standard in (0, 1, 2):
            os.dup2(null, standard)
        if job["isolated"]:
            isolation.drop_privileges(other_user=False)
        isolation.limit(job["cpu_s"], job["memory_mb"], job["file_mb"], None)
        if job["programs"]:
            verdict["passed"] = _prints(test, mine, printed, candidate)
        else:
            verdict["passed"] = passes(test, Channel(mine))
    except Unjudgeable as why:
        verdict = {"error": str(why)}
    except BaseException as error:
        verdict = {"error": f"{type(error).__name__}: {error}"}
    os.write(verdicts, json.dumps(verdict).encode() + b"\n")
    os._exit(0)


def _prints(test: dict[str, str], feed: socket.socket, printed: int, candidate: int) -> bool:
    """Whether the program ends well and prints what it should, given its input."""
    left, output = test["input"].encode(), bytearray()
    feed.setblocking(False)
    if not left:
        feed.shutdown(socket.SHUT_WR)
    while True:
        writable = select.select([printed], [feed] if left else [], [])[1]
        if writable:
            try:
                left = left[feed.send(left[:65536]) :]
            except OSError:  # it reads no more
                left = b""
            if not left:
                with suppress(OSError):
                    feed.shutdown(socket.SHUT_WR)
            continue
        part = os.read(printed, 65536)
        output += part
        if not part or len(output) > LARGEST_OUTPUT:
            break
    ended_well = not part and os.waitpid(candidate, 0)[1] == 0
    return ended_well and same_output(output.decode(errors="replace"), test["output"])


def _candidate(job: dict[str, Any], channel: socket.socket, printing: int) -> None:
    """Become the process that runs the response: it keeps one end of a channel, and nothing else."""
    code = 1
    try:
        isolation.control(isolation.PARENT_DEATH_SIGNAL, signal.SIGKILL)
        null = os.open("/dev/null", os.O_RDWR)
        kept = os.dup(channel.fileno()) if not job["programs"] else -1
        os.dup2(channel.fileno() if job["programs"] else null, 0)
        os.dup2(printing if job["programs"] else null, 1)
        os.dup2(null, 2)
        last = 3
        if kept >= 0:
            os.dup2(kept, 3)
            last = 4
        os.closerange(last, 2**16)
        for standard, (name, mode) in enumerate((("stdin", "r"), ("stdout", "w"), ("stderr", "w"))):
            setattr(sys, name, os.fdopen(standard, mode, encoding="utf-8", closefd=False))
        processes = job["processes"] + isolation.counted_beside(job["isolated"])
        if job["isolated"]:
            isolation.drop_privileges(other_user=True)
        else:
            os.setsid()
        isolation.limit(job["cpu_s"], job["memory_mb"], job["file_mb"], processes)
        if job["programs"]:
            run_program(job["code"])
            sys.stdout.flush()
        else:
            Server(job["code"], Channel(socket.socket(fileno=3))).run()
        code = 0
    except SystemExit as end:
        with suppress(Exception):
            sys.stdout.flush()
        code = 0 if end.code in (None, 0) else 1
    finally:
        os._exit(code)


if __name__ == "__main__":
    main()
