"""Judges behind a real vLLM server on a CPU, reached through a proxy with faults: `make test-vllm`."""

import importlib.util
import json
import os
import socket
import subprocess
import sys
import time
import urllib.request

import pytest
from builders import tiny_policy
from judge_server import Drop, JudgeServer, Says, Slow, Status
from judging_options import KEY, judge, judged, pairwise, sample

from tpg.errors import UserError
from tpg.rewards.model import RewardModel

pytestmark = pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="needs vllm: make test-vllm")

MODEL = "tiny-judge"
RESPONSES = ["a short one", "another that says much more about it", "?", "17", "a b c d e f g"]
PLAIN = "{% for message in messages %}{{ message.content }}\n{% endfor %}"


@pytest.fixture(scope="module")
def upstream(tmp_path_factory):
    """The address of vLLM's own server of the tiny policy: random weights, but its answers have the form."""
    folder = tmp_path_factory.mktemp("vllm")
    policy = tiny_policy(max_positions=2048)
    policy.model.save_pretrained(folder)
    policy.tokenizer.save_pretrained(folder)
    template = folder / "plain.jinja"
    template.write_text(PLAIN)
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        port = listening.getsockname()[1]
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", f"--model={folder}", "--host=127.0.0.1"]
    command += [f"--port={port}", f"--served-model-name={MODEL}", f"--chat-template={template}", "--dtype=float32"]
    command += ["--max-model-len=2048", "--enforce-eager", "--kv-cache-memory-bytes=268435456", "--max-num-seqs=16"]
    command += [
        '--structured-outputs-config={"backend": "xgrammar", "disable_any_whitespace": true}',
        "--disable-uvicorn-access-log",
    ]
    variables = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
    environment = {**os.environ, **variables, "VLLM_NO_USAGE_STATS": "1"}
    log = folder / "log"
    with log.open("w") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, env=environment, start_new_session=True)
    try:
        for _ in range(800):
            assert process.poll() is None, log.read_text()[-3000:]
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/v1/models", timeout=5).read()
                break
            except OSError:
                time.sleep(0.5)
        else:
            raise TimeoutError(log.read_text()[-3000:])
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        process.terminate()
        process.wait(timeout=60)


@pytest.fixture
def server(upstream, monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    proxy = JudgeServer(upstream=upstream)
    yield proxy
    if not proxy.stopping.is_set():
        proxy.stop()


def asked_directly(upstream, body):
    data = json.dumps(body).encode()
    request = urllib.request.Request(f"{upstream}/chat/completions", data, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=300) as response:
        return json.loads(response.read())


def test_scores_are_those_that_the_server_gives(server, upstream):
    term = judge(server, model=MODEL, max_tokens=64)
    rewards = judged(term, *map(sample, RESPONSES))
    assert rewards.failures == {}
    answers = {}
    for body, asked in zip(server.bodies, server.asked, strict=True):
        (response,) = [each for each in RESPONSES if f"]\n{each}\n[end" in asked]
        answers[response] = asked_directly(upstream, body)
    texts = [answers[response]["choices"][0]["message"]["content"] for response in RESPONSES]
    scores = [json.loads(text)["score"] for text in texts]
    assert all(isinstance(score, int) and 0 <= score <= 10 for score in scores)
    assert rewards.total == [score / 10 for score in scores]
    tokens = sum(answer["usage"]["total_tokens"] for answer in answers.values())
    assert rewards.metrics["judge/judge_tokens"] == tokens
    assert rewards.metrics["judge/judge_seconds"] > 0


def test_faults_on_the_way_change_no_score(server, tmp_path):
    options = {"model": MODEL, "max_tokens": 64, "timeout_s": 60.0, "retries": 4, "concurrency": 2}
    undisturbed = judged(judge(server, **options), *map(sample, RESPONSES))
    assert undisturbed.failures == {}
    server.script = [
        Status(429, "busy", {"Retry-After": "0"}),
        Status(500),
        Drop(),
        Says('{"score": 11}'),
        Says("rubbish"),
        Status(503, "starting", {"Retry-After": "1"}),
    ]
    kept = judge(server, cache=str(tmp_path / "c.sqlite"), **options)
    disturbed = judged(kept, *map(sample, RESPONSES))
    assert disturbed.total == undisturbed.total
    assert disturbed.metrics["judge/retries"] == 6
    server.stop()
    with_cache = judge(server, cache=kept.cache, check_at_start=False, **options)
    assert judged(with_cache, *map(sample, RESPONSES)).total == undisturbed.total


def test_what_is_cut_late_or_free_of_form_is_unscored(server):
    cut = judged(judge(server, model=MODEL, max_tokens=3, retries=0), sample("a"))
    assert cut.failures == {"judge": {"malformed": 1}}
    assert "cut at max_tokens=3" in cut.first_failure["judge"]
    free = judged(judge(server, model=MODEL, max_tokens=16, response_format="text", retries=0), sample("a"))
    assert free.failures == {"judge": {"malformed": 1}}
    server.always = Slow(3)
    late = judged(judge(server, model=MODEL, timeout_s=0.5, retries=0), sample("a"))
    assert late.failures == {"judge": {"timed out": 1}}


def test_a_server_that_goes_down_leaves_responses_unscored(server):
    with RewardModel({"judge": judge(server, model=MODEL, max_tokens=64, retries=1)}, workers=1) as model:
        assert model.score([sample("a")]).scored == [True]
        server.stop()
        assert model.score([sample("b"), sample("c")]).failures == {"judge": {"unreachable": 2}}


def test_another_model_than_is_served_is_told(server):
    with pytest.raises(UserError, match=rf"^{KEY}\.model=larger: .* serves {MODEL}; name one"):
        judge(server, model="larger").load(KEY)


def test_pairs_are_compared_in_both_orders(server):
    rewards = judged(pairwise(server, model=MODEL, max_tokens=64), *map(sample, RESPONSES[:3]))
    assert rewards.failures == {}
    assert len(server.bodies) == 6
    assert sum(rewards.total) == pytest.approx(1.5)  # three pairs, each a point, over two opponents
