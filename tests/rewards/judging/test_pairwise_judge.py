"""Win rates within a group, from pairs that are judged in both orders."""

import math
import re
from itertools import combinations

import pytest
from judge_server import Drop, Says, Slow
from judging_options import COMPARED, judged, pairwise, sample
from pydantic import ValidationError

from tpg.rewards.judging import PairwiseJudge

SHOWN = re.compile(r"\[(?:first|second) response \w+\]\n(.*?)\n\[end of", re.DOTALL)


def shown(asked):
    """The two texts that a judge is shown."""
    return SHOWN.findall(asked)


def longer(asked):
    first, second = shown(asked)
    if len(first) == len(second):
        return '{"winner": "tie"}'
    return '{"winner": "%s"}' % ("first" if len(first) > len(second) else "second")


def always(word):
    return lambda asked: f'{{"winner": "{word}"}}'


def group(*texts, **rest):
    return [sample(text, **rest) for text in texts]


def asked_pairs(server):
    return sorted(tuple(shown(asked)) for asked in server.asked)


def test_a_response_gets_the_share_that_it_wins(server):
    server.answer = longer
    rewards = judged(pairwise(server), *group("aa", "bbbb", "c", "dd"))
    # aa: beats c, loses to bbbb, ties with dd
    assert rewards.terms == {"judge": [pytest.approx(0.5), 1.0, 0.0, pytest.approx(0.5)]}
    texts = ["aa", "bbbb", "c", "dd"]
    assert asked_pairs(server) == sorted([*combinations(texts, 2), *((b, a) for a, b in combinations(texts, 2))])
    assert rewards.metrics["judge/judge_disagreement"] == 0


@pytest.mark.parametrize("word", ["first", "second"])
def test_a_judge_that_looks_at_the_place_alone_decides_nothing(server, word):
    server.answer = always(word)
    rewards = judged(pairwise(server), *group("a", "b", "c", "d", "e"))
    assert rewards.total == [0.5] * 5
    assert rewards.metrics["judge/judge_disagreement"] == 1
    assert len(server.bodies) == 20  # ten pairs, two orders


def test_a_win_in_one_order_and_a_tie_in_the_other_is_a_tie(server):
    server.answer = lambda asked: '{"winner": "%s"}' % ("first" if shown(asked)[0] == "a" else "tie")
    assert judged(pairwise(server), *group("a", "b")).total == [0.5, 0.5]


def test_responses_meet_those_to_their_own_prompt(server):
    server.answer = longer
    ones = group("a", "bb", prompt="p", group=(0, 0))
    others = group("cccc", "ddd", prompt="q", group=(1, 0))
    later = group("e", "ff", prompt="p", group=(0, 1))
    mixed = [each for triple in zip(ones, others, later, strict=True) for each in triple]
    assert judged(pairwise(server), *mixed).total == [0, 1, 0, 1, 0, 1]
    assert {frozenset(pair) for pair in asked_pairs(server)} == {
        frozenset(pair) for pair in (("a", "bb"), ("cccc", "ddd"), ("e", "ff"))
    }
    assert all(asked.startswith("q?") == ("cccc" in asked) for asked in server.asked)


def test_equal_responses_tie_without_a_question(server):
    server.answer = longer
    assert judged(pairwise(server), *group("a", "a", "bb")).total == [0.25, 0.25, 1.0]
    assert len(server.bodies) == 4


def test_a_response_alone_is_unscored(server):
    rewards = judged(pairwise(server), *group("a"), *group("b", group=(1, 0)))
    assert rewards.failures == {"judge": {"no opponent": 2}}
    assert rewards.first_failure == {"judge": "there is no other response to its prompt to compare it with"}
    assert server.bodies == []


def test_a_pair_that_is_not_judged_in_both_orders_is_left_out(server):
    # b loses its only judged comparison, with ccc
    server.answer = lambda asked: "rubbish" if shown(asked) == ["b", "aa"] else longer(asked)
    rewards = judged(pairwise(server, retries=0), *group("aa", "b", "ccc"))
    assert rewards.terms == {"judge": [0.0, 0.0, 1.0]}
    assert rewards.failures == {}


def test_a_response_without_a_judged_pair_is_unscored(server):
    server.answer = lambda asked: "rubbish" if "aa" in shown(asked) else longer(asked)
    rewards = judged(pairwise(server, retries=0), *group("aa", "b", "ccc"))
    assert rewards.total == pytest.approx([math.nan, 0, 1], nan_ok=True)
    assert rewards.failures == {"judge": {"malformed": 1}}


@pytest.mark.parametrize("says", ['{"winner": "both"}', '{"winner": "First"}', '{"score": 3}', '{"winner": null}'])
def test_a_verdict_of_another_form_is_malformed(server, says):
    server.always = Says(says)
    rewards = judged(pairwise(server, retries=1), *group("a", "b"))
    assert rewards.failures == {"judge": {"malformed": 2}}
    assert len(server.bodies) == 4


def test_an_endpoint_that_is_down_leaves_the_group_unscored(server):
    server.always = Drop()
    assert judged(pairwise(server, retries=0), *group("a", "b", "c")).failures == {"judge": {"unreachable": 3}}


# Who meets whom


def options(**given):
    return PairwiseJudge(**{**COMPARED, **given})


@pytest.mark.parametrize(
    ("count", "opponents", "each"), [(8, 1, 2), (8, 2, 4), (8, 3, 6), (8, 4, 7), (5, 2, 4), (2, 3, 1)]
)
def test_all_meet_equally_many(count, opponents, each):
    texts = [f"t{i}" for i in range(count)]
    pairs = options(opponents=opponents).pairs(texts, (3, 0))
    assert len(pairs) == len(set(pairs)) == count * each // 2
    assert all(one < other for one, other in pairs)
    assert [sum(place in pair for pair in pairs) for place in range(count)] == [each] * count


def test_who_meets_whom_is_a_function_of_seed_prompt_and_texts():
    texts = [f"t{i}" for i in range(8)]

    def met(order, group=(0, 0), seed=0):
        pairs = options(opponents=1, seed=seed).pairs(order, group)
        return {frozenset((order[one], order[other])) for one, other in pairs}

    assert met(texts) == met(texts[::-1]) == met(texts[3:] + texts[:3])
    assert met(texts) != met(texts, group=(0, 1))
    assert met(texts) != met(texts, group=(1, 0))
    assert met(texts) != met(texts, seed=1)
    circle = [4, 3, 5, 1, 6, 7, 2, 0]  # as drawn when this was written: runs of then and now meet alike
    neighbours = zip(circle, circle[1:] + circle[:1], strict=True)
    assert met(texts) == {frozenset((texts[one], texts[other])) for one, other in neighbours}


def test_the_order_in_which_responses_and_answers_come_changes_nothing(server):
    server.answer = longer
    texts = ["a", "bb", "ccc", "dddd", "eeeee", "ffffff"]
    term = pairwise(server, opponents=1, concurrency=4)
    forward = dict(zip(texts, judged(term, *group(*texts)).total, strict=True))
    server.script = [Slow(0.1), Slow(0.05)]
    backward = dict(zip(texts[::-1], judged(term, *group(*texts[::-1])).total, strict=True))
    assert forward == backward
    assert set(forward.values()) >= {0.0, 1.0}
    assert len(server.bodies) == 24  # six pairs, two orders, twice


def test_a_rubric_shows_both():
    with pytest.raises(ValidationError, match=r"there is no \{second\} in it"):
        options(rubric="{first}")
