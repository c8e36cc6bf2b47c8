"""The share of tests that a response's Python passes."""

# ruff: noqa: E501 (whole programs in a line)

import pytest
from pydantic import ValidationError

from tpg.errors import UserError
from tpg.rewards.base import Sample
from tpg.rewards.code import term as code_term
from tpg.rewards.code.sandbox import HarnessError, Limits, run_tests
from tpg.rewards.code.term import PythonTests, python_of
from tpg.rewards.model import RewardModel

LIMITS = Limits(test_s=3, total_s=10, cpu_s=2)


def sample(response, tests):
    return Sample(prompt="a prompt", response=response, columns={"tests": tests})


def passed(code, *tests, **rest):
    return run_tests(code, tests, LIMITS, **rest)


@pytest.mark.parametrize(
    ("response", "code"),
    [
        ("x = 1", "x = 1"),
        ("So:\n```python\nx = 1\n```\nDone.", "x = 1\n"),
        ("```python\nx = 1\n```\nBetter:\n```py\nx = 2\n```", "x = 2\n"),
        ("```python\nx = 1\n```\nRun it:\n```bash\nls\n```", "x = 1\n"),
        ("```\nx = 1\n```", "x = 1\n"),
        ("```python\nx = 1", "x = 1"),
        ("```bash\nls\n```", "```bash\nls\n```"),
    ],
)
def test_which_code_is_the_response(response, code):
    assert python_of(response) == code


def test_without_a_block_there_may_be_nothing():
    assert python_of("x = 1", fenced_only=True) == ""
    assert PythonTests(fenced_only=True).score(sample("def f(): return 1", ["assert f() == 1"])) == 0


def test_the_score_is_the_share_passed():
    tests = ["assert f(2) == 4", "assert f(3) == 9", "assert f(-1) == 1", "assert f(0) == 1"]
    assert PythonTests().score(sample("```python\ndef f(x):\n    return x * x\n```", tests)) == 0.75


def test_the_answer_key_may_be_the_test():
    answered = Sample(prompt="", response="def f(x): return x * x", answer="assert f(2) == 4")
    assert PythonTests(tests_column="answer").score(answered) == 1
    assert PythonTests(tests_column="answer").required_columns() == {"answer"}


def test_programs_are_given_input_and_judged_by_their_output():
    tests = [{"input": "3 4\n", "output": "7"}, {"input": "1 1\n", "output": "2\n"}, {"input": "2 2\n", "output": "5"}]
    assert PythonTests().score(sample("a, b = map(int, input().split())\nprint(a + b, ' ')", tests)) == 2 / 3


@pytest.mark.parametrize(
    ("program", "value"),
    [
        ("print(input())", True),
        ("import sys\nfor line in sys.stdin: print(line, end='')\nsys.exit(0)", True),
        ("import sys\nsys.stdout.write(sys.stdin.read())", True),
        ("if __name__ == '__main__': print(input())", True),
        ("print(input())\nraise SystemExit(3)", False),
        ("print(input()); 1 / 0", False),
        ("print(input(), 2)", False),
        ("", False),
        ("while True: print('x' * 10**6)", False),
        ("import os\nos.close(0)\nprint(12)", True),
        ("import os\nos.close(0)\nos.close(1)", False),
        ("import os\nos.kill(os.getpid(), 9)\nos._exit(0)", False),
    ],
)
def test_a_program_must_print_that_alone_and_end_well(program, value):
    assert passed(program, {"input": "12\n", "output": "12"}) == [value]


def test_an_empty_input_and_an_input_that_nobody_reads():
    assert passed("import sys\nprint(repr(sys.stdin.read()))", {"input": "", "output": "''"}) == [True]
    closes = "import os\nos.close(0)\nimport time\ntime.sleep(0.3)\nprint(1)"
    assert passed(closes, {"input": "7" * 3_000_000, "output": "1"}) == [True]


def test_a_large_input_is_read_whole():
    line = "7" * 3_000_000
    assert passed("print(len(input()))", {"input": line, "output": "3000000"}) == [True]
    assert passed("print(1)", {"input": line, "output": "1"}) == [True]


@pytest.mark.parametrize(
    ("code", "test"),
    [
        ("def f(x): return [x, {'a': (1, 2.5)}, {3}, None, b'z', 1j]", "assert f(1) == [1, {'a': (1, 2.5)}, {3}, None, b'z', 1j]"),
        ("def f(x): return type(x)(reversed(x))", "assert f((1, 2)) == (2, 1) and isinstance(f([1]), list)"),
        ("def f(x): return 2 ** x", "assert f(20000) == 2 ** 20000"),
        ("def f(n): yield from range(n)", "assert list(f(3)) == [0, 1, 2]"),
        ("import itertools\ndef f(): return itertools.count()", "assert next(f()) == 0"),
        ("def f(x): x.sort()", "numbers = [3, 1]\nf(numbers)\nassert numbers == [1, 3]"),
        ("def f(x): x['b'] = 2", "d = {'a': 1}\nf(d)\nassert d == {'a': 1, 'b': 2}"),
        ("def f(g, x): return g(g(x))", "assert f(lambda x: x + 3, 1) == 7"),
        ("def f(x): return x + 1\ndef g(h, x): return h(x)", "assert g(lambda x: f(x) * 2, 4) == 10"),
        ("def f(x):\n    if x < 0: raise ValueError('negative')", "try:\n    f(-1)\nexcept ValueError as e:\n    assert str(e) == 'negative'\nelse:\n    assert False"),
        ("def f(x): return x", "def check(candidate):\n    assert candidate(1) == 1\ncheck(f)"),
        ("import math\ndef f(x): return x / 3", "assert math.isclose(f(1), 0.333333333333333333)"),
        ("class Stack:\n    def __init__(self): self.items = []\n    def push(self, x): self.items.append(x)\n    def pop(self): return self.items.pop()\n    def __len__(self): return len(self.items)", "s = Stack()\ns.push(1)\ns.push(2)\nassert len(s) == 2 and s.pop() == 2 and s.items == [1]"),
        ("class Solution:\n    def twoSum(self, x, target): return [0, 1]", "assert Solution().twoSum([1, 2], target=3) == [0, 1]"),
        ("class Node:\n    next = None\ndef f():\n    n = Node(); n.next = n\n    return n", "n = f()\nassert n.next is n"),
        ("from collections import namedtuple, deque, Counter\nP = namedtuple('P', 'x y')\ndef f(): return P(1, 2), deque([1]), Counter('aab')", "assert f() == ((1, 2), __import__('collections').deque([1]), {'a': 2, 'b': 1})"),
        ("LIMIT = 7", "assert LIMIT == 7"),
    ],
)  # fmt: skip
def test_what_passes_between_a_test_and_a_response(code, test):
    assert passed(code, test) == [True]
    assert passed("", test) == [False]


def test_each_test_finds_the_response_as_it_was_and_an_empty_folder():
    code = "import os\ncalls = []\ndef f():\n    calls.append(1)\n    open(f'{len(os.listdir())}', 'w').close()\n    return len(calls), os.listdir()"
    assert passed(code, "assert f() == (1, ['0'])", "assert f() == (1, ['0'])") == [True, True]


def test_sets_come_in_the_same_order_every_time():
    code = "def f(): return list({'a', 'b', 'c', 'd', 'e', 'f'})"
    first = PythonTests().score(sample(code, [f"assert f() == {list(p)!r}" for p in ("abcdef", "fedcba")]))
    assert first == PythonTests().score(sample(code, [f"assert f() == {list(p)!r}" for p in ("abcdef", "fedcba")]))
    order = run_tests(code, ["assert f() == f()"] * 2, LIMITS)
    assert order == [True, True]


@pytest.mark.parametrize(
    ("tests", "cause"),
    [
        (["assert f( == 1"], "test 1: the test is no Python"),
        (["assert f() == 1", "# nothing"], "test 2: the test is empty"),
        (["class A: pass\nassert f(A()) == 1"], "test 1: the test hands the response an object of type A"),
    ],
)
def test_a_bad_test_is_no_failure_of_the_response(tests, cause):
    with pytest.raises(HarnessError, match=cause.replace("(", r"\(")):
        PythonTests().score(sample("def f(*a): return 1", tests))


@pytest.mark.parametrize("tests", [None, [], [""], ["assert 1", {"input": "", "output": ""}], [{"input": "1"}], [3]])
def test_a_column_without_tests_is_an_error_and_not_a_zero(tests):
    with pytest.raises(ValueError, match="the column 'tests' must hold a list of tests"):
        PythonTests().score(sample("def f(): return 1", tests))


def test_in_worker_processes_a_bad_test_is_unscored_and_told():
    with RewardModel({"python_tests": PythonTests()}, workers=1, memory_gb=2) as model:
        rewards = model.score(
            [sample("def f(): return 1", ["assert f() == 1"]), sample("def f(): return 1", ["assert f( == 1"])]
        )
    assert rewards.scored == [True, False]
    assert rewards.total[0] == 1
    assert rewards.failures == {"python_tests": {"raised": 1}}
    assert "HarnessError: test 1: the test is no Python" in rewards.first_failure["python_tests"]


def test_installed_packages_are_there_if_asked_for():
    code = "def f():\n    import pydantic\n    return pydantic.__name__"
    tests = ["assert f() == 'pydantic'"]
    assert PythonTests(memory_mb=2048).score(sample(code, tests)) == 0
    assert PythonTests(memory_mb=2048, installed_packages=True).score(sample(code, tests)) == 1


def test_the_limit_of_all_tests_must_fit_into_that_of_the_response():
    with pytest.raises(ValidationError, match="20 and 5 s to start are more than timeout_s=10"):
        PythonTests(timeout_s=10)


def test_where_code_cannot_be_isolated_it_is_refused_unless_allowed(monkeypatch):
    monkeypatch.setattr(code_term, "why_not_isolated", lambda: "unshare: Operation not permitted")
    with pytest.raises(UserError, match=r"^reward_model.c.allow_unisolated=false: this machine cannot .*not permitted"):
        PythonTests().check("reward_model.c")
    with pytest.raises(RuntimeError, match="cannot be isolated"):
        PythonTests().score(sample("def f(): return 1", ["assert f() == 1"]))
    PythonTests(allow_unisolated=True).check("reward_model.c")
    assert PythonTests(allow_unisolated=True).score(sample("def f(): return 1", ["assert f() == 1"])) == 1
