"""What a run leaves on disk, and how it is cut back."""

import json

import pytest

from tpg.errors import UserError
from tpg.training.run_folder import RunFolder, write_atomically


@pytest.fixture
def folder(tmp_path):
    made = RunFolder(tmp_path / "run")
    made.create("seed: 1\n")
    return made


def records(*iterations):
    return [{"iteration": iteration, "response": "größer\n"} for iteration in iterations]


def written(folder):
    return [json.loads(line)["iteration"] for line in folder.completions.read_text().splitlines()]


def test_a_new_column_leaves_earlier_rows_empty_there(folder):
    folder.add_row({"iteration": 1, "reward": 0.5})
    folder.add_row({"iteration": 2, "eval/reward": 0.25, "reward": 0.75})
    folder.add_row({"iteration": 3, "reward": 1.0})
    assert folder.metrics.read_text().splitlines() == [
        "iteration,reward,eval/reward",
        "1,0.5,",
        "2,0.75,0.25",
        "3,1.0,",
    ]
    assert [row["reward"] for row in folder.rows()] == ["0.5", "0.75", "1.0"]


def test_it_is_cut_back_to_an_iteration_and_goes_on_with_the_same_columns(folder):
    for iteration in (1, 2, 3):
        folder.add_row({"iteration": iteration, "reward": iteration / 2})
        folder.add_completions(records(iteration, iteration))
    again = RunFolder(folder.path)
    again.cut_back(2)
    assert [row["iteration"] for row in again.rows()] == ["1", "2"]
    assert written(again) == [1, 1, 2, 2]
    again.add_row({"iteration": 3, "reward": 1.5})
    assert again.metrics.read_text().splitlines() == ["iteration,reward", "1,0.5", "2,1.0", "3,1.5"]


@pytest.mark.parametrize("torn", ["2", "2,0.", "2,0.75,1", "", "\x00\x00", "1"])
def test_a_torn_last_row_is_forgotten(folder, torn):
    folder.add_row({"iteration": 1, "reward": 0.5, "loss": 1.5})
    with folder.metrics.open("a") as file:
        file.write(torn)
    again = RunFolder(folder.path)
    again.cut_back(1)
    again.add_row({"iteration": 2, "reward": 0.75, "loss": 1.25})
    assert again.metrics.read_text().splitlines() == ["iteration,reward,loss", "1,0.5,1.5", "2,0.75,1.25"]


@pytest.mark.parametrize("torn", ['{"iteration": 2, "resp', "{", '{"iteration": 1', "7", "\x00"])
def test_a_torn_last_completion_is_forgotten(folder, torn):
    folder.add_completions(records(1))
    with folder.completions.open("a") as file:
        file.write(torn)
    again = RunFolder(folder.path)
    again.cut_back(1)
    again.add_completions(records(2))
    assert written(again) == [1, 2]


def test_a_completion_cut_inside_a_character_is_forgotten(folder):
    folder.add_completions(records(1))
    with folder.completions.open("ab") as file:
        file.write('{"iteration": 2, "response": "grö'.encode()[:-1])
    RunFolder(folder.path).cut_back(1)
    assert written(folder) == [1]


def test_separators_within_a_response_do_not_split_its_line(folder):
    text = "one\u2028two\x0bthree\x85four\x1cfive"
    folder.add_completions([{"iteration": 1, "response": text}])
    again = RunFolder(folder.path)
    again.cut_back(1)
    lines = again.completions.read_bytes().decode().split("\n")
    assert [json.loads(line)["response"] for line in lines if line] == [text]


def test_before_the_first_checkpoint_nothing_is_kept(folder):
    folder.add_row({"iteration": 1, "reward": 0.5})
    folder.add_completions(records(1))
    again = RunFolder(folder.path)
    again.cut_back(0)
    assert again.rows() == []
    assert written(again) == []
    again.add_row({"iteration": 1, "reward": 0.25})
    assert again.rows() == [{"iteration": "1", "reward": "0.25"}]


def test_cutting_back_a_fresh_run_needs_no_file(folder):
    folder.cut_back(0)
    folder.add_row({"iteration": 1, "reward": 0.5})
    assert folder.rows() == [{"iteration": "1", "reward": "0.5"}]


def test_a_folder_that_holds_anything_is_refused(tmp_path):
    RunFolder.refuse_other_run(tmp_path / "absent")
    RunFolder.refuse_other_run(tmp_path)
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match=str(tmp_path)):
        RunFolder.refuse_other_run(tmp_path)
    with pytest.raises(UserError, match=r"notes\.txt"):
        RunFolder.refuse_other_run(tmp_path / "notes.txt")


def test_only_a_run_is_opened(tmp_path, folder):
    assert RunFolder.opened(folder.path).config.read_text() == "seed: 1\n"
    with pytest.raises(UserError, match="holds no run"):
        RunFolder.opened(tmp_path)


def test_the_newest_checkpoint_is_the_latest_iterations(folder):
    assert folder.newest_checkpoint() is None
    for name in ("iteration-000010.ckpt", "iteration-000009.ckpt", "iteration-000011.ckpt.tmp"):
        (folder.checkpoints / name).touch()
    assert folder.newest_checkpoint() == folder.checkpoints / "iteration-000010.ckpt"


def test_an_atomic_write_replaces_the_whole_text(tmp_path):
    path = tmp_path / "file.json"
    write_atomically(path, "longer than the next")
    write_atomically(path, "short")
    assert path.read_text() == "short"
    assert list(tmp_path.iterdir()) == [path]


def test_the_policy_is_the_old_one_until_the_new_one_is_written(folder):
    def save(text):
        def write(place):
            place.mkdir()
            (place / "model").write_text(text)
            if text == "half":
                raise OSError(28, "No space left on device")

        return write

    folder.write_policy(save("old"))
    with pytest.raises(OSError, match="No space left"):
        folder.write_policy(save("half"))
    assert (folder.policy / "model").read_text() == "old"
    folder.write_policy(save("new"))
    assert (folder.policy / "model").read_text() == "new"
    assert not (folder.path / "policy.tmp").exists()
