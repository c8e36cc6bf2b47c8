"""A judge's endpoint that is down, slow, overloaded or talks rubbish costs a reward, never the run; and never a key."""

import io
import json
import logging
import math
import os
import time
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest
from judge_server import Body, Drip, Drop, Says, Slow, Status
from judging_options import KEY, judge, judged, sample

from tpg.errors import UserError
from tpg.rewards.judging.unjudged import seconds_of
from tpg.rewards.model import RewardModel

SECRET = "very-own-word-31415926"
PROPER = Says('{"score": 7}')

FAULTS = {
    "429": (Status(429, "slow down"), "rate limited", "status 429: slow down"),
    "500": (Status(500, "oops"), "server error", "status 500: oops"),
    "503": (Status(503, ""), "server error", "status 503"),
    "dropped": (Drop(), "unreachable", "/v1: "),
    "late": (Slow(5), "timed out", "no answer within 1 s"),
    "endless": (Drip(0.02), "timed out", "no answer within 1 s"),
    "no JSON": (Body("<html>"), "malformed", "no chat completion: <html>"),
    "no completion": (Body('{"choices": []}'), "malformed", "no chat completion: "),
    "another type": (Body('["a"]'), "malformed", "no chat completion: "),
    "no text": (Says(None), "malformed", "no text but "),
    "prose": (Says("I would say 7."), "malformed", "Invalid JSON"),
    "fenced": (Says('```json\n{"score": 7}\n```'), "malformed", "Invalid JSON"),
    "cut": (Says('{"score": 7}', "length"), "malformed", "cut at max_tokens=512"),
    "no score": (Says("{}"), "malformed", "score: Field required, in {}"),
    "more than a score": (Says('{"score": 7, "grade": "A"}'), "malformed", "grade: Extra inputs"),
    "number as text": (Says('{"score": "7"}'), "malformed", "score: Input should be a valid integer"),
    "truth": (Says('{"score": true}'), "malformed", "score: Input should be a valid integer"),
    "fraction": (Says('{"score": 7.5}'), "malformed", "score: Input should be a valid integer"),
    "NaN": (Says('{"score": NaN}'), "malformed", "score: "),
    "too high": (Says('{"score": 11}'), "malformed", "score: Input should be less than or equal to 10"),
    "too low": (Says('{"score": -1}'), "malformed", "score: Input should be greater than or equal to 0"),
}


def patience(reason):
    return 1 if reason == "timed out" else 30


@pytest.mark.parametrize(("fault", "reason", "cause"), FAULTS.values(), ids=FAULTS)
def test_only_the_response_whose_judging_fails_to_the_end_is_unscored(server, fault, reason, cause):
    """Three requests meet the fault, as often as one response is asked about; the other is judged at once."""
    server.script = [fault] * 3
    rewards = judged(judge(server, concurrency=1, timeout_s=patience(reason)), sample("a"), sample("b"))
    assert rewards.total == pytest.approx([math.nan, 0.7], nan_ok=True)
    assert rewards.failures == {"judge": {reason: 1}}
    assert cause in rewards.first_failure["judge"]
    assert len(server.bodies) == 4
    assert rewards.metrics["judge/retries"] == 2


@pytest.mark.parametrize(("fault", "reason", "cause"), FAULTS.values(), ids=FAULTS)
def test_a_fault_that_passes_leaves_no_trace_but_a_count(server, fault, reason, cause):
    server.script = [fault]
    rewards = judged(judge(server, timeout_s=patience(reason)), sample("a"))
    assert rewards.total == [0.7]
    assert rewards.failures == {}
    assert rewards.metrics["judge/retries"] == 1


@pytest.mark.parametrize("status", [400, 401, 403, 404, 413, 422, 302])
def test_what_will_not_pass_is_not_tried_again(server, status):
    server.always = Status(status, "told why")
    rewards = judged(judge(server), sample("a"))
    assert rewards.failures == {"judge": {"refused": 1}}
    assert rewards.first_failure == {"judge": f"status {status}: told why"}
    assert len(server.bodies) == 1


def test_waits_double(server):
    server.always = Status(500)
    judged(judge(server, backoff_s=0.4, retries=3), sample("a"))
    waits = [later - earlier for earlier, later in zip(server.times, server.times[1:], strict=False)]
    for wait, least in zip(waits, (0.2, 0.4, 0.8), strict=True):  # at least half of 0.4, 0.8, 1.6
        assert wait >= least


def test_no_wait_is_longer_than_allowed(server):
    server.always = Status(500)
    begun = time.monotonic()
    judged(judge(server, backoff_s=1000, max_wait_s=0.01, retries=5), sample("a"))
    assert time.monotonic() - begun < 30


@pytest.mark.parametrize("status", [429, 503])
def test_the_endpoints_own_wait_is_kept(server, status):
    server.script = [Status(status, headers={"Retry-After": "1"})]
    assert judged(judge(server), sample("a")).total == [0.7]
    assert server.times[1] - server.times[0] >= 1


def test_a_response_is_given_up_rather_than_waited_for_too_long(server):
    server.script = [Status(429, "later", headers={"Retry-After": "3600"})]
    rewards = judged(judge(server), sample("a"))
    cause = "asked to wait 3600 s, more than max_wait_s=60; status 429: later"
    assert rewards.first_failure == {"judge": cause}
    assert len(server.bodies) == 1


def test_a_header_asks_for_seconds_or_names_a_date():
    soon = format_datetime(datetime.now(UTC) + timedelta(seconds=100), usegmt=True)
    assert 95 < seconds_of(soon) <= 100
    assert [seconds_of(text) for text in ("2.5", "-3", "nan", "soon", "", None)] == [2.5, 0, None, None, None, None]
    assert seconds_of("Wed, 21 Oct 2015 07:28:00 GMT") == 0


def test_an_endpoint_that_goes_down_leaves_the_rest_unscored_without_waiting_for_each(server):
    with RewardModel({"judge": judge(server, concurrency=1, retries=3)}, workers=1) as model:
        assert model.score([sample("a")]).total == [0.7]
        server.stop()
        rewards = model.score([sample(f"{i}") for i in range(20)])
        assert rewards.scored == [False] * 20
        assert rewards.failures == {"judge": {"unreachable": 20}}
        assert server.url in rewards.first_failure["judge"]
        assert rewards.metrics["judge/retries"] == 3  # for the first alone


def test_an_endpoint_that_comes_back_is_trusted_again(server):
    server.script = [Drop()] * 4
    with RewardModel({"judge": judge(server, concurrency=1, retries=2)}, workers=1) as model:
        assert model.score([sample("a"), sample("b")]).scored == [False, False]  # three requests, then one
        server.script = [PROPER, Drop()]
        assert model.score([sample("c"), sample("d")]).scored == [True, True]


def test_a_run_that_ends_does_not_wait_for_answers(server):
    server.always = Slow(60)
    model = RewardModel({"judge": judge(server)}, workers=1)
    model.submit([sample("a")])
    begun = time.monotonic()
    while not server.bodies and time.monotonic() - begun < 10:
        time.sleep(0.005)
    assert server.bodies
    begun = time.monotonic()
    model.close()
    assert time.monotonic() - begun < 20


def test_an_answer_without_end_is_cut(server):
    server.always = Body(" " * (5 * 2**20))
    rewards = judged(judge(server, retries=0), sample("a"))
    assert rewards.first_failure == {"judge": "the answer is longer than 4194304 bytes"}


# Before the run


def test_an_endpoint_that_is_down_is_told_at_the_start(server):
    server.stop()
    with pytest.raises(UserError, match=rf"^{KEY}\.base_url={server.url}: no answer \(.+\); start the judge's server"):
        judge(server).load(KEY)
    scorer = judge(server, check_at_start=False, retries=0).load(KEY)
    (outcome,) = scorer.outcomes([scorer.begin(sample("a"))])
    assert outcome.reason == "unreachable"
    scorer.close()


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (Status(404, "nothing here"), r"base_url=.*: /models answers 404 \(nothing here\); an address mostly ends"),
        (Status(401, "who?"), r"api_key_env: .* refuses requests without a key \(401: who\?\)"),
        (Status(200, "<html>"), "base_url=.*: /models gives no list of models"),
        (Status(200, '{"data": [{"id": "one"}]}'), "model=judge-of-tests: .* serves one; name one"),
    ],
)
def test_an_endpoint_that_is_another_is_told_at_the_start(server, answer, told):
    server.models_answer = answer
    with pytest.raises(UserError, match=rf"^{KEY}\.{told}"):
        judge(server).load(KEY)
    judge(server, check_at_start=False).load(KEY).close()


def test_a_key_that_is_not_there_is_told_before_anything_is_loaded(server, monkeypatch):
    monkeypatch.delenv("MY_JUDGE", raising=False)
    term = judge(server, api_key_env="MY_JUDGE")
    with pytest.raises(
        UserError, match=rf"^{KEY}\.api_key_env=MY_JUDGE: the judge needs this environment variable, which is"
    ):
        term.check(KEY)
    with pytest.raises(UserError, match=r"api_key_env: should be the name of an environment variable") as caught:
        judge(server, api_key_env=SECRET).check(KEY)
    assert SECRET not in str(caught.value)
    monkeypatch.setenv("MY_JUDGE", f"{SECRET}\nsecond line")
    with pytest.raises(UserError, match="its value is no key") as caught:
        term.check(KEY)
    assert SECRET not in str(caught.value)


# The key


@pytest.fixture
def log():
    """All that any library logs."""
    written, root = io.StringIO(), logging.getLogger()
    handler, level = logging.StreamHandler(written), root.level
    root.addHandler(handler)
    root.setLevel(logging.DEBUG)
    yield written
    root.removeHandler(handler)
    root.setLevel(level)


def test_the_key_is_sent_and_told_nowhere(server, monkeypatch, log):
    monkeypatch.setenv("MY_JUDGE", SECRET)  # a name that gives nothing away
    server.key = SECRET
    term = judge(server, api_key_env="MY_JUDGE")
    server.script = [Status(400, f"bad key {SECRET}"), Says(f"your key is {SECRET}"), *[Body(SECRET)] * 2]
    rewards = judged(term, sample("a"))
    more = judged(term, sample("b"))
    told = [*rewards.first_failure.values(), *more.first_failure.values()]
    assert told[0] == "status 400: bad key ***"
    assert "no chat completion: ***" in told[1]
    scorer = term.load(KEY)
    texts = [*told, repr(term), repr(scorer), json.dumps(server.bodies), log.getvalue()]
    scorer.close()
    server.key = "another"
    with pytest.raises(UserError, match=r"refuses the key in MY_JUDGE \(401: wrong key: Bearer \*\*\*\)") as caught:
        term.load(KEY)
    texts += [str(caught.value), str(caught.value.__cause__)]
    assert log.getvalue()
    assert all(SECRET not in text for text in texts)
    assert os.environ["MY_JUDGE"] == SECRET
