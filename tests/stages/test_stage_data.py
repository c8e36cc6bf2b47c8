"""Demonstrations and preferences of tasks and tables: what is read, what is held out, what is refused."""

import json

import pytest

from tpg.errors import UserError
from tpg.tasks.addition import Addition
from tpg.tasks.demonstrations import DatasetDemonstrations, Demonstration, TaskDemonstrations
from tpg.tasks.hidden_reward import HiddenReward
from tpg.tasks.preferences import DatasetPreferences, Pair, TaskPreferences
from tpg.tasks.sort import Sort

TASK = Addition()
USER = {"role": "user", "content": "1+1?"}
ANSWER = {"role": "assistant", "content": "2"}


@pytest.fixture
def table(tmp_path):
    """The path of a JSONL file with these rows."""

    def written(*rows, name="rows.jsonl"):
        path = tmp_path / name
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return str(path)

    return written


def numbered(count, per_prompt=1):
    return [
        {"prompt": f"p{i // per_prompt}", "response": f"r{i}", "chosen": f"c{i}", "rejected": f"w{i}", "by": i}
        for i in range(count)
    ]


def test_all_rows_of_a_prompt_are_on_one_side(table):
    option = DatasetDemonstrations(path=table(*numbered(40, per_prompt=4)), held_out=0.3)
    parts = option.load(TASK, seed=0)
    assert len(parts.train) == 28
    assert len(parts.held_out) == 12
    assert not {pair.prompt for pair in parts.train} & {pair.prompt for pair in parts.held_out}
    again, other = option.load(TASK, seed=0), option.load(TASK, seed=1)
    assert again == parts
    assert {pair.prompt for pair in other.held_out} != {pair.prompt for pair in parts.held_out}


def test_a_file_to_evaluate_on_takes_its_prompts_out_of_training(table):
    held_out = table({"prompt": "p3", "response": "x"}, name="test.jsonl")
    parts = DatasetDemonstrations(path=table(*numbered(5)), evaluation_path=held_out).load(TASK, seed=0)
    assert [pair.prompt for pair in parts.train] == ["p0", "p1", "p2", "p4"]
    assert parts.held_out == (Demonstration("p3", "x"),)
    assert parts.notes == ("1 rows left out of training: their prompts are held out too",)


def test_limits_take_the_first(table):
    option = DatasetDemonstrations(path=table(*numbered(20)), held_out=0.5, train_limit=3, evaluation_limit=2)
    parts = option.load(TASK, seed=0)
    assert (len(parts.train), len(parts.held_out)) == (3, 2)


@pytest.mark.parametrize(
    ("options", "row"),
    [
        ({}, {"prompt": "1+1?", "response": "2"}),
        ({"prompt": "q", "response": "a"}, {"q": "1+1?", "a": "2"}),
        ({}, {"prompt": "1+1?", "response": [USER, ANSWER]}),
    ],
    ids=["text", "columns", "chat"],
)
def test_a_demonstration_is_read(table, options, row):
    other = {name: "0?" if value == "1+1?" else value for name, value in row.items()}
    parts = DatasetDemonstrations(path=table(row, other), **options).load(TASK, seed=0)
    assert Demonstration("1+1?", "2") in {*parts.train, *parts.held_out}


def test_a_column_of_whole_chats_is_cut_before_the_last_turn(table):
    system = {"role": "system", "content": "Be brief.", "name": None}
    rows = [{"messages": [USER, ANSWER]}, {"messages": [system, USER, ANSWER]}]
    option = DatasetDemonstrations(path=table(*rows), prompt="messages", response=None)
    parts = option.load(TASK, seed=0)
    whole = {len(pair.prompt): pair for pair in (*parts.train, *parts.held_out)}
    assert whole[1] == Demonstration((USER,), "2")
    assert whole[2].prompt == ({"role": "system", "content": "Be brief."}, USER)


def test_a_preference_is_read_with_its_margin(table):
    chat = [USER, {"role": "assistant", "content": "3"}]
    rows = [
        {"prompt": "1+1?", "chosen": "2", "rejected": chat, "gap": 1},
        {"prompt": "0?", "chosen": "0", "rejected": "1", "gap": 0.5},
    ]
    option = DatasetPreferences(path=table(*rows), margin="gap")
    assert option.tells_margins()
    parts = option.load(TASK, seed=0)
    assert {*parts.train, *parts.held_out} == {Pair("1+1?", "2", "3", 1.0), Pair("0?", "0", "1", 0.5)}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"chosen": "a", "rejected": "a"}, "row 1: chosen and rejected are the same"),
        ({"chosen": "a", "rejected": " "}, "row 1: rejected is empty"),
        ({"chosen": "a", "rejected": 3}, "row 1: rejected must be text or a list of messages"),
        ({"chosen": [USER], "rejected": "b"}, "row 1: chosen does not end with the assistant's turn, but with that of"),
        (
            {"chosen": [ANSWER, ANSWER], "rejected": "b"},
            "row 1: chosen: its turns before the last are not the prompt's",
        ),
        ({"chosen": "a", "rejected": "b", "by": -1}, "row 1: by must be a number from 0 on, not -1"),
        ({"chosen": "a", "rejected": "b", "by": None}, "row 1: by must be a number from 0 on, not None"),
        ({"chosen": "a", "rejected": "b", "prompt": ""}, "row 1: prompt must be text or a list of messages"),
        ({"chosen": "a", "rejected": "b", "prompt": [USER, ANSWER]}, "row 1: prompt ends with the assistant's turn"),
    ],
    ids=["same", "empty", "number", "user", "other-turns", "negative", "no-margin", "no-prompt", "answered"],
)
def test_a_row_that_is_no_preference_is_named(table, row, message):
    path = table({"prompt": "1+1?", "by": 1, **row}, {"prompt": "0?", "chosen": "a", "rejected": "b", "by": 1})
    with pytest.raises(UserError) as raised:
        DatasetPreferences(path=path, margin="by").load(TASK, seed=0)
    assert message in str(raised.value)
    assert str(raised.value).startswith(f"preferences.path={path}, row 1: ")


def test_a_row_that_lacks_a_column_is_named(table):
    path = table({"prompt": "a", "response": "b"}, {"prompt": "c"})
    with pytest.raises(UserError, match=r"^demonstrations.path=.*, row 2 has no response$"):
        DatasetDemonstrations(path=path).load(TASK, seed=0)


def test_columns_and_files_are_looked_for_first(table):
    path = table(*numbered(3))
    with pytest.raises(UserError, match=r"^preferences.chosen=choosen is no column of .*did you mean chosen"):
        DatasetPreferences(path=path, chosen="choosen").check(TASK)
    with pytest.raises(UserError, match=r"^demonstrations.path=.*rows.jsonx: no such file.*did you mean"):
        DatasetDemonstrations(path=path.replace("jsonl", "jsonx"), format="jsonl").check(TASK)
    with pytest.raises(UserError, match=r"set demonstrations.format to what the file is"):
        DatasetDemonstrations(path=path, format="hub").check(TASK)
    with pytest.raises(UserError, match=r"^demonstrations.split=test is for hub datasets"):
        DatasetDemonstrations(path=path, split="test")


def test_one_prompt_is_too_few(table):
    with pytest.raises(UserError, match="1 prompts are too few to hold one out"):
        DatasetPreferences(path=table(*numbered(4, per_prompt=4))).load(TASK, seed=0)


def test_a_task_gives_its_own_and_none_of_what_it_holds_out():
    sort = Sort(digits=3, train_size=50, evaluation_size=400)
    parts = TaskDemonstrations(count=300, held_out=0.2).load(sort, seed=5)
    assert len(parts.train) + len(parts.held_out) == 300
    prompts = {example.text for example in sort.load(5).evaluation}
    assert not prompts & {pair.prompt for pair in (*parts.train, *parts.held_out)}
    assert not {pair.prompt for pair in parts.train} & {pair.prompt for pair in parts.held_out}

    pairs = TaskPreferences(count=50).load(HiddenReward(), seed=5)
    made = HiddenReward().preferences(5, 50)
    assert sorted(map(str, (*pairs.train, *pairs.held_out))) == sorted(
        str(Pair(each.prompt, each.chosen, each.rejected)) for each in made
    )


def test_a_task_without_any_is_refused():
    with pytest.raises(UserError, match=r"^demonstrations: Addition offers none; use demonstrations=dataset"):
        TaskDemonstrations().check(TASK)
    with pytest.raises(UserError, match=r"^preferences: Sort offers none; use preferences=dataset"):
        TaskPreferences().check(Sort())
