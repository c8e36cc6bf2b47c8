"""Code that a policy wrote gains no reward but by doing what the tests ask, and harms nobody."""

# ruff: noqa: E501 (whole programs in a line)

import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

from tpg.rewards.base import Sample
from tpg.rewards.code.sandbox import Limits, run_tests, why_not_isolated
from tpg.rewards.code.term import PythonTests

TEST = "assert f(2) == 4"
LIMITS = Limits(test_s=2, total_s=4, cpu_s=1, memory_mb=256, file_mb=4, processes=8)

FORGERIES = {
    "exit": "import sys\nsys.exit(0)",
    "exit when called": "def f(x):\n    import sys\n    sys.exit(0)",
    "hard exit": "import os\nos._exit(0)",
    "hard exit when called": "def f(x):\n    import os\n    os._exit(0)",
    "equal to everything": "class All:\n    def __eq__(self, other): return True\ndef f(x): return All()",
    "an int equal to everything": (
        "class All(int):\n    def __eq__(self, other): return True\n    __hash__ = int.__hash__\ndef f(x): return All(3)"
    ),
    "equal by subtraction": (
        "class All(float):\n    def __rsub__(self, other): return 0.0\n    __sub__ = __rsub__\ndef f(x): return All(1)"
    ),
    "other builtins": "import builtins\nbuiltins.AssertionError = None\nbuiltins.abs = lambda x: 0\ndef f(x): return 0",
    "own names of builtins": "abs = len = all = lambda x: 0\nAssertionError = Exception\ndef f(x): return 0",
    "another math": (
        "class math:\n    isclose = staticmethod(lambda *a: True)\nimport sys\nsys.modules['math'] = math\n"
        "def f(x): return 0"
    ),
    "printed verdicts": "print('{\"passed\": true}', flush=True)\ndef f(x): print('{\"passed\": true}', flush=True)",
    "written verdicts": (
        "import os\nfor d in range(100):\n    try: os.write(d, b'{\"passed\": true}\\n')\n    except OSError: pass\n"
        "def f(x): return 0"
    ),
    "forged replies": (
        "import gc, socket\ndef f(x):\n    for o in gc.get_objects():\n        if isinstance(o, socket.socket):\n"
        "            o.sendall(b'\\x00\\x00\\x00\\x10{\"passed\": true}')\n    return 0"
    ),
    "closed output": "import os\nos.closerange(0, 100)\ndef f(x): return 0",
    "skipped from above": (
        "import sys\ndef f(x):\n    frame = sys._getframe()\n    while frame:\n        frame.f_trace = lambda *a: None\n"
        "        frame.f_locals['passed'] = True\n        frame = frame.f_back\n    return 0"
    ),
    "patched harness": (
        "import sys\nfor name, module in list(sys.modules.items()):\n    if name.startswith('tpg') or "
        "name == '__main__':\n        for key in ('passes', 'same_output', '_judge', '_verdict'):\n"
        "            setattr(module, key, lambda *a: True)\ndef f(x): return 0"
    ),
    "patched JSON": (
        "import json\njson.dumps = lambda *a: '{\"passed\": true}'\njson.loads = lambda *a: ['value', 4]\n"
        "def f(x): return 0"
    ),
    "searched memory": (
        "import gc\ndef f(x):\n    needle = 'f(2)' + chr(32) + '== 4'\n    for o in gc.get_objects():\n"
        "        if isinstance(o, (dict, list, tuple)) and any(needle in v for v in (o.values() if isinstance(o, dict)"
        " else o) if isinstance(v, (str, bytes)) and type(v) is str): return 4\n    return 0"
    ),
    "raised what a test ignores": "def f(x): raise StopIteration",
    "no end": "def f(x):\n    while True: pass",
    "no end at once": "while True: pass",
    "a sleep": "def f(x):\n    import time\n    time.sleep(100)",
    "deaf to signals": (
        "import signal\nfor n in range(1, 64):\n    try: signal.signal(n, signal.SIG_IGN)\n    except (OSError, ValueError): "
        "pass\ndef f(x):\n    while True: pass"
    ),
    "much memory": "def f(x): return bytearray(10**9)",
    "much memory bit by bit": "def f(x):\n    all = []\n    while True: all.append(bytearray(10**6))",
    "a long list": "def f(x): return list(range(10**8))",
    "deep nesting": "def f(x):\n    y = []\n    for _ in range(10**5): y = [y]\n    return y",
    "deep recursion": "import sys\nsys.setrecursionlimit(10**9)\ndef f(x): return f(x)",
    "a flood of replies": (
        "import gc, socket\ndef f(x):\n    for o in gc.get_objects():\n        if isinstance(o, socket.socket):\n"
        "            while True: o.sendall(b'\\x00' * 10**6)"
    ),
    "a fork bomb": "import os\ndef f(x):\n    while True:\n        try: os.fork()\n        except OSError: pass",
    "a thread bomb": (
        "import threading, time\ndef f(x):\n    while True:\n        threading.Thread(target=time.sleep, args=(9,)).start()"
    ),
    "a large file": "def f(x):\n    with open('a', 'wb') as file:\n        file.write(bytes(10**8))\n    return 4",
    "many files": (
        "def f(x):\n    for i in range(20):\n        with open(str(i), 'wb') as file: file.write(bytes(10**6))\n    return 4"
    ),
    "broken syntax": "def f(x:",
    "a crash": "import ctypes\ndef f(x): ctypes.string_at(0)",
    "nothing": "",
}  # fmt: skip
LIMITED_BY_NAMESPACES = {"many files"}


def leftovers():
    """Processes of the harness; the dead have no command line."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if b"tpg.rewards.code.harness" in (folder / "cmdline").read_bytes():
                found.append(int(folder.name))
    return found


def test_this_machine_isolates():
    assert why_not_isolated() is None


@pytest.mark.parametrize("attack", FORGERIES)
def test_what_passes_no_test_gets_nothing(attack):
    code = FORGERIES[attack]
    tests = [TEST, "assert abs(f(2) - 4) < 1e-6", "assert math.isclose(f(2), 4)"]
    began = time.monotonic()
    assert run_tests(code, tests[:1] if "no end" in attack else tests, LIMITS) == [False] * (
        1 if "no end" in attack else 3
    )
    assert time.monotonic() - began < 20
    assert leftovers() == []


@pytest.mark.parametrize("attack", sorted(set(FORGERIES) - LIMITED_BY_NAMESPACES - {"a fork bomb", "a thread bomb"}))
def test_nor_without_isolation(attack):
    assert run_tests(FORGERIES[attack], [TEST], LIMITS, isolated=False) == [False]
    assert leftovers() == []


def test_a_right_response_passes_under_the_same_limits():
    right = "def f(x): return x ** 2"
    tests = [TEST, "assert abs(f(2) - 4) < 1e-6", "assert math.isclose(f(2), 4)"]
    for isolated in (True, False):
        assert run_tests(right, tests, LIMITS, isolated=isolated) == [True] * 3


def test_an_attack_on_one_test_costs_the_others_nothing():
    code = "def f(x):\n    if x == 2:\n        import os\n        os._exit(0)\n    return x * x"
    assert run_tests(code, ["assert f(3) == 9", TEST, "assert f(4) == 16"], LIMITS) == [True, False, True]


def test_after_the_time_of_all_tests_the_others_are_not_passed():
    code = "def f(x):\n    if x < 3:\n        while True: pass\n    return x"
    limits = Limits(test_s=1, total_s=1.5, cpu_s=5)
    assert run_tests(code, ["assert f(1) == 1", "assert f(2) == 2", "assert f(5) == 5"], limits) == [False] * 3


@pytest.mark.parametrize("isolated", [True, False])
def test_daemons_end_with_their_test(isolated):
    code = (
        "import os, time\ndef f(x):\n    for _ in range(2):\n        if os.fork() == 0:\n            os.setsid()\n"
        "            if os.fork() == 0:\n                time.sleep(60)\n            os._exit(0)\n    return x * x"
    )
    assert run_tests(code, [TEST, TEST], LIMITS, isolated=isolated) == [True, True]
    assert leftovers() == []


@pytest.mark.parametrize("target", ["os.getppid()", "1", "-1", "0"])
def test_signals_reach_no_other_process(target):
    code = f"import os\ndef f(x):\n    try: os.kill({target}, 9)\n    except OSError: pass\n    return 5"
    bystander = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(30)"])
    try:
        assert run_tests(code, [TEST, "assert f(3) == 5"], LIMITS)[0] is False
        assert bystander.poll() is None
    finally:
        bystander.kill()
        bystander.wait()


def test_it_sees_no_other_process_and_cannot_trace_the_one_that_judges():
    code = "import os, ctypes\ndef f(x): return os.getpid(), os.getppid(), [ctypes.CDLL(None).ptrace(16, p, 0, 0) for p in range(2, 30)]"
    assert run_tests(code, ["assert f(2) == (1, 0, [-1] * 28)"], LIMITS) == [True]


def test_there_is_no_network():
    server = socket.create_server(("127.0.0.1", 0))
    port = server.getsockname()[1]
    code = f"import socket\ndef f(x):\n    socket.create_connection(('127.0.0.1', {port}), timeout=1)\n    return 4"
    server.settimeout(0.2)
    assert run_tests(code, [TEST], LIMITS) == [False]
    with pytest.raises(TimeoutError):
        server.accept()
    assert run_tests(code, [TEST], LIMITS, isolated=False) == [True], "and this test would have noticed one"
    server.close()


def test_there_are_no_secrets_and_no_files(monkeypatch, tmp_path):
    secret = tmp_path / "secret"
    secret.write_text("4")
    secret.chmod(0o644)
    monkeypatch.setenv("OPENAI_API_KEY", "abc")
    reads = f"def f(x): return int(open({str(secret)!r}).read())"
    assert run_tests(reads, [TEST], LIMITS) == [False]
    sees = "import os\ndef f(x): return sorted(os.environ), os.listdir('.'), os.path.exists('/proc'), os.path.exists('/etc')"
    assert run_tests(sees, ["assert f(2) == (['LANG', 'TMPDIR'], [], False, False)"], LIMITS) == [True]  # fmt: skip
    package = str(Path(__file__).parents[2] / "tpg" / "__init__.py")
    assert run_tests(f"def f(x): return len(open({package!r}).read())", ["assert f(2) > 0"], LIMITS) == [False]


def test_nothing_can_be_written_but_in_the_working_folder_which_is_gone():
    code = (
        "import os\ndef f(folder):\n    try:\n        open(os.path.join(folder, 'mine'), 'w').close()\n"
        "        return True\n    except OSError:\n        return False"
    )
    stdlib = os.path.dirname(os.__file__)
    folders = ["/", "/dev", "/usr/lib", stdlib, os.path.dirname(__file__)]
    tests = [*(f"assert f({folder!r}) is False" for folder in folders), "assert f('.') is True", "assert f('/tmp')"]
    assert run_tests(code, tests, LIMITS) == [True] * len(tests)
    assert not Path(stdlib, "mine").exists()
    before = set(Path("/tmp").glob("tpg-code-*"))
    run_tests(code, ["assert f('.') is True"], LIMITS, isolated=False)
    assert set(Path("/tmp").glob("tpg-code-*")) <= before


def test_it_may_gain_no_privileges():
    code = (
        "import ctypes, os\nlibc = ctypes.CDLL(None)\ndef f(x):\n"
        "    gained = [libc.unshare(0x10000000), libc.mount(b'tmpfs', b'/dev', b'tmpfs', 0, None), libc.chroot(b'.')]\n"
        "    try: os.setuid(0)\n    except OSError: gained.append(-1)\n    return gained"
    )
    tests = ["assert f(2)[:3] == [-1, -1, -1]"]
    assert run_tests(code, tests, LIMITS) == [True]


def test_the_harness_dies_with_the_process_that_scores():
    script = (
        "from tpg.rewards.base import Sample\nfrom tpg.rewards.code.term import PythonTests\n"
        "PythonTests(test_s=20, cpu_s=20).score(Sample(prompt='', response='def f(x):\\n    while True: pass',"
        f" columns={{'tests': [{TEST!r}]}}))"
    )
    scoring = subprocess.Popen([sys.executable, "-c", script])
    deadline = time.monotonic() + 20
    while len(leftovers()) < 4 and time.monotonic() < deadline:
        time.sleep(0.05)
    assert len(leftovers()) >= 4
    scoring.send_signal(signal.SIGKILL)
    scoring.wait()
    while leftovers() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert leftovers() == []


def test_a_response_that_kills_is_scored_zero_and_costs_the_worker_nothing():
    kills = "import os, signal\nfor p in (os.getppid(), 1, -1):\n    try: os.kill(p, 9)\n    except OSError: pass"
    assert PythonTests().score(Sample(prompt="", response=kills, columns={"tests": [TEST]})) == 0


def test_tests_share_no_memory():
    code = (
        "import ctypes\nlibc = ctypes.CDLL(None)\ndef f(x):\n    there = libc.shmget(77, 4096, 0o600)\n"
        "    made = libc.shmget(77, 4096, 0o1600)\n    return there < 0 and made >= 0"
    )
    assert run_tests(code, ["assert f(2) is True"] * 2, LIMITS) == [True, True]
