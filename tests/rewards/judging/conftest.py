"""A judge for each test, and none of the user's proxies on the way to it."""

import pytest
from judge_server import JudgeServer


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    judge = JudgeServer()
    yield judge
    if not judge.stopping.is_set():
        judge.stop()
