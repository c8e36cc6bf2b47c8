import json

import datasets
import pyarrow
import pyarrow.parquet
import pytest

from tpg.errors import UserError
from tpg.tasks.base import Example
from tpg.tasks.dataset import Dataset

ROWS = [{"prompt": f"question {i}", "answer": f"{i}", "level": i % 3} for i in range(10)]


def write(path, rows) -> str:
    if path.suffix == ".parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    elif path.suffix == ".csv":
        lines = [",".join(rows[0]), *(",".join(map(str, row.values())) for row in rows)]
        path.write_text("\ufeff" + "\n".join(lines), encoding="utf-8")
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows), encoding="utf-8")
    else:
        path.write_text("\n".join(map(json.dumps, rows)) + "\n\n", encoding="utf-8")
    return str(path)


@pytest.mark.parametrize("suffix", ["jsonl", "json", "csv", "parquet"])
def test_local_files(tmp_path, suffix):
    path = write(tmp_path / f"rows.{suffix}", ROWS)
    task = Dataset(path=path, extra_columns=["level"], held_out=0.3)
    task.check()
    examples = task.load(seed=0)
    assert (len(examples.train), len(examples.evaluation)) == (7, 3)
    assert examples.notes == ()
    level = "1" if suffix == "csv" else 1
    assert Example("question 4", "4", {"level": level}) in examples.train + examples.evaluation
    assert {e.prompt for e in examples.train + examples.evaluation} == {f"question {i}" for i in range(10)}
    assert task.columns() == {"answer", "level"}
    assert [file.name for file in tmp_path.iterdir()] == [f"rows.{suffix}"]


def test_the_seed_chooses_what_is_held_out(tmp_path):
    task = Dataset(path=write(tmp_path / "rows.jsonl", ROWS), held_out=0.2)
    assert [example.answer for example in task.load(seed=0).evaluation] == ["0", "5"]
    assert [example.answer for example in task.load(seed=1).evaluation] == ["2", "5"]
    assert [example.answer for example in task.load(seed=0).train] == ["1", "2", "3", "4", "6", "7", "8", "9"]


def test_limits(tmp_path):
    path = write(tmp_path / "rows.jsonl", ROWS)
    examples = Dataset(path=path, held_out=0.5, train_limit=3, evaluation_limit=2).load(seed=0)
    assert (len(examples.train), len(examples.evaluation)) == (3, 2)


def test_evaluation_path_and_prompts_in_both(tmp_path):
    evaluation_path = write(tmp_path / "test.csv", ROWS[:2])
    examples = Dataset(path=write(tmp_path / "rows.jsonl", ROWS), evaluation_path=evaluation_path).load(seed=0)
    assert [example.answer for example in examples.evaluation] == ["0", "1"]
    assert [example.answer for example in examples.train] == [str(i) for i in range(2, 10)]
    assert examples.notes == ("2 prompts left out of training: they are held out too",)


def test_chats_and_numbers(tmp_path):
    chat = [{"role": "system", "content": "Be brief.", "name": None}, {"role": "user", "content": "1 + 1?"}]
    other = [{"role": "user", "content": "2 + 2?"}]
    rows = [{"messages": chat, "sum": 2}, {"messages": other, "sum": 4.5}]
    task = Dataset(path=write(tmp_path / "chats.parquet", rows), prompt="messages", answer="sum", held_out=0.5)
    examples = task.load(seed=0)
    first, second = sorted(examples.train + examples.evaluation, key=lambda example: example.answer)
    assert first.prompt == ({"role": "system", "content": "Be brief."}, {"role": "user", "content": "1 + 1?"})
    assert first.text == "Be brief.\n1 + 1?"
    assert (first.answer, second.answer) == ("2.0", "4.5")


def test_without_answers(tmp_path):
    path = write(tmp_path / "rows.jsonl", [{"prompt": "a"}, {"prompt": "b"}])
    task = Dataset(path=path, answer=None)
    assert task.columns() == frozenset()
    assert task.load(seed=0).train[0].answer is None


def test_missing_file_and_columns(tmp_path):
    path = write(tmp_path / "rows.jsonl", ROWS)
    with pytest.raises(UserError, match=r"task\.path=.*/row\.jsonl: no such file; did you mean rows\.jsonl\?"):
        Dataset(path=str(tmp_path / "row.jsonl")).check()
    with pytest.raises(UserError, match=r"task\.evaluation_path=.*/none/a\.csv: no such file$"):
        Dataset(path=path, evaluation_path=str(tmp_path / "none" / "a.csv")).check()
    with pytest.raises(
        UserError, match=r"task\.prompt=promt is no .*; did you mean prompt\? \(columns: prompt, answer"
    ):
        Dataset(path=path, prompt="promt").check()
    with pytest.raises(UserError, match=r"task\.answer=solution is no column of"):
        Dataset(path=path, answer="solution").check()
    with pytest.raises(UserError, match=r"task\.extra_columns\[1\]=levle is no .*; did you mean level"):
        Dataset(path=path, extra_columns=["level", "levle"]).load(seed=0)


def test_check_reads_only_the_head(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"prompt": "a", "answer": "b"}\n{"prompt": \n')
    Dataset(path=str(path)).check()
    with pytest.raises(UserError, match=r"cannot be read as jsonl: line 2: Expecting value"):
        Dataset(path=str(path)).load(seed=0)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": None, "answer": "1"}, r"row 2: prompt must be text or a list of messages .* not None"),
        ({"prompt": "  ", "answer": "1"}, r"row 2: prompt must be text or a list of messages .* not '  '"),
        ({"prompt": [{"from": "human"}], "answer": "1"}, "row 2: prompt must be text or a list of messages"),
        ({"prompt": [{"role": "assistant", "content": "x"}], "answer": "1"}, "row 2: prompt ends with the assistant's"),
        ({"prompt": "a"}, "row 2 has no answer"),
        ({"prompt": "a", "answer": None}, "row 2: answer must be text or a number, not None"),
        ({"prompt": "a", "answer": float("nan")}, "row 2: answer must be text or a number, not nan"),
        ({"prompt": "a", "answer": ["1"]}, "row 2: answer must be text or a number, not"),
        (["a", "1"], "cannot be read as jsonl: row 2 is no record"),
    ],
)
def test_corrupted_rows(tmp_path, row, message):
    task = Dataset(path=write(tmp_path / "rows.jsonl", [ROWS[0], row]))
    with pytest.raises(UserError, match=message) as raised:
        task.load(seed=0)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("a.csv", b"prompt,answer\na,1,2\n", "cannot be read as csv: row 1 has more cells than the header"),
        ("a.csv", b"prompt,answer\n", "holds no rows"),
        ("a.json", b'{"prompt": ["a"]}', "cannot be read as json: it must hold one list of records"),
        ("a.jsonl", b'{"prompt": "\xff"}', "cannot be read as jsonl: 'utf-8' codec can't decode"),
        ("a.parquet", b"PAR0", "cannot be read as parquet: "),
        ("a.txt", b"a", r"set task\.format to what the file is \(jsonl, json, csv, parquet\)"),
    ],
)
def test_unreadable_files(tmp_path, file, content, message):
    (tmp_path / file).write_bytes(content)
    with pytest.raises(UserError, match=message) as raised:
        Dataset(path=str(tmp_path / file)).check()
    assert "\n" not in str(raised.value)


def test_keys_that_do_not_go_together(tmp_path):
    with pytest.raises(UserError, match=r"task\.evaluation_split and task\.evaluation_path exclude each other"):
        Dataset(path="owner/name", evaluation_split="test", evaluation_path="a.csv")
    with pytest.raises(UserError, match=r"task\.split=test is for hub datasets, but task\.path=a\.csv is a file"):
        Dataset(path="a.csv", split="test")
    with pytest.raises(UserError, match=r"goes into task\.answer"):
        Dataset(path="a.csv", extra_columns=["answer"])


def test_nothing_is_left(tmp_path):
    path = write(tmp_path / "rows.jsonl", ROWS[:1])
    with pytest.raises(UserError, match="1 rows are too few"):
        Dataset(path=path).load(seed=0)
    with pytest.raises(UserError, match="no prompt is left to train on"):
        Dataset(path=path, evaluation_path=path).load(seed=0)


def test_datasets_library(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    folder = tmp_path / "mine"
    folder.mkdir()
    write(folder / "train.jsonl", ROWS)
    write(folder / "test.jsonl", ROWS[:3])
    examples = Dataset(path=str(folder), evaluation_split="test", evaluation_limit=2).load(seed=0)
    assert [example.answer for example in examples.evaluation] == ["0", "1"]
    assert [example.answer for example in examples.train] == [str(i) for i in range(3, 10)]
    with pytest.raises(UserError, match=r"task\.prompt=question is no column of .*mine \(columns: prompt, answer"):
        Dataset(path=str(folder), prompt="question").load(seed=0)
    with pytest.raises(UserError, match=r'task\.path=.*mine cannot be read as hub: Unknown split "dev"'):
        Dataset(path=str(folder), split="dev").load(seed=0)
    with pytest.raises(UserError, match=r"is neither a file or folder nor a hub id"):
        Dataset(path=str(folder / "none")).check()


def test_the_hub_is_asked_only_when_loading(monkeypatch):
    def load_dataset(path, name, split):
        assert (path, name) == ("owner/name", "main")
        return datasets.Dataset.from_list(ROWS[:4] if split == "train" else ROWS[4:])

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    task = Dataset(path="owner/name", name="main", evaluation_split="test")
    task.check()
    examples = task.load(seed=0)
    assert (len(examples.train), len(examples.evaluation)) == (4, 6)
