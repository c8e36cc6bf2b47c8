import hashlib
import json
import os
import pickle
import subprocess
import sys

import pytest

from tpg.errors import UserError
from tpg.tasks.reasoning_gym import WITHOUT_ANSWER, ReasoningGym, draw


def test_questions_answers_and_columns():
    task = ReasoningGym(dataset="chain_sum", params={"max_terms": 2, "max_digits": 1}, train_size=20, evaluation_size=5)
    examples = task.load(seed=0)
    assert (len(examples.train), len(examples.evaluation)) == (20, 5)
    assert len({example.prompt for example in examples.train + examples.evaluation}) == 25
    for example in examples.train:
        left, sign, right = example.columns["entry"]["metadata"]["expression"].split()
        assert example.answer == str(int(left) + int(right) if sign == "+" else int(left) - int(right))
        assert example.prompt == example.columns["entry"]["question"]
        assert example.columns["dataset"] == "chain_sum"
    assert task.columns() == {"answer", "entry", "dataset"}
    assert pickle.loads(pickle.dumps(examples)) == examples
    assert json.loads(json.dumps(examples.train[0].columns["entry"]))["answer"] == examples.train[0].answer
    assert task.load(seed=0) == examples
    assert {e.prompt for e in task.load(seed=1).evaluation} != {e.prompt for e in examples.evaluation}


# All but basic_arithmetic give other entries when Python's hash salt is another.
DATASETS = ["basic_arithmetic", "isomorphic_strings", "list_functions", "polynomial_multiplication"]


def digest(dataset):
    examples = ReasoningGym(dataset=dataset, train_size=20, evaluation_size=4).load(seed=3)
    return hashlib.sha256(repr(examples).encode()).hexdigest()


def test_the_hash_salt_changes_nothing():
    other = "2" if os.environ.get("PYTHONHASHSEED") == "1" else "1"
    environment = os.environ | {"PYTHONHASHSEED": other, "PYTHONPATH": os.pathsep.join(sys.path)}
    script = "from test_reasoning_gym import DATASETS, digest; print(*map(digest, DATASETS))"
    child = subprocess.run([sys.executable, "-c", script], env=environment, stdout=subprocess.PIPE, check=True)
    assert child.stdout.decode().split() == [digest(dataset) for dataset in DATASETS]


def test_duplicates_are_left_out_with_a_note():
    task = ReasoningGym(dataset="tower_of_hanoi", train_size=50, evaluation_size=10)
    examples = task.load(seed=0)
    assert len({example.prompt for example in examples.train + examples.evaluation}) == 60
    (note,) = examples.notes
    assert note.endswith(" duplicated questions of tower_of_hanoi left out")


def test_too_few_distinct_questions():
    task = ReasoningGym(dataset="tower_of_hanoi", train_size=90, evaluation_size=10)
    with pytest.raises(UserError, match=r"gave 90 distinct .* task\.train_size=90 and task\.evaluation_size=10 .* 100"):
        task.load(seed=0)


@pytest.mark.parametrize("dataset", sorted(WITHOUT_ANSWER))
def test_datasets_without_an_answer_key(dataset):
    assert ReasoningGym(dataset=dataset).columns() == {"entry", "dataset"}
    entries, _ = draw(dataset, {}, 0, 2)
    assert [entry["answer"] for entry in entries] == [None, None]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"dataset": "chain_sums"}, r"task\.dataset=chain_sums is no dataset .*; did you mean chain_sum"),
        ({"dataset": "gcd", "params": {"max_valu": 3}}, r"task\.params\.max_valu is no .*; did you mean max_value"),
        ({"dataset": "gcd", "params": {"seed": 3}}, r"task\.params\.seed is no parameter of gcd \(allowed: max_numb"),
        ({"dataset": "composite"}, "composite refuses them: Must specify at least one dataset"),
        ({"dataset": "gcd", "params": {"min_numbers": 1}}, "gcd refuses them: min_numbers must be at least 2"),
    ],
)
def test_refusals(fields, message):
    with pytest.raises(UserError, match=message) as raised:
        ReasoningGym(**fields)
    assert "\n" not in str(raised.value)


def test_a_dataset_that_fails_does_so_in_one_line():
    task = ReasoningGym(dataset="gcd", params={"max_value": 10.5})
    with pytest.raises(UserError, match=r"task\.dataset=gcd failed to make its questions: \w+Error: .*") as raised:
        task.load(seed=0)
    assert "\n" not in str(raised.value)
