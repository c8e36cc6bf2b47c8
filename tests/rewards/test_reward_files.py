"""What terms read from files stays what it was when the run began."""

import shutil

import pytest
import yaml

import tpg.train
from tpg.errors import UserError
from tpg.reporting.automaton_picture import draw_automata
from tpg.rewards.automaton.term import AdaptiveAutomaton, AutomatonProgress
from tpg.rewards.base import Sample
from tpg.rewards.files import PIECE, PIECES, digest
from tpg.rewards.length import LengthTarget
from tpg.rewards.model import RewardModel

WAY = {
    "states": ["a", "b", "c"],
    "start": "a",
    "accepting": ["c"],
    "events": {"go": "x"},
    "transitions": {"a": {"go": "b"}, "b": {"go": "c"}},
}
OTHER = {**WAY, "events": {"go": "y"}}


def written(path, automaton):
    path.write_text(yaml.safe_dump(automaton))
    return path


def of_file(path):
    return RewardModel({"way": AutomatonProgress(path=str(path))}, workers=1)


def test_processes_that_start_later_follow_the_automaton_that_was_read_first(tmp_path):
    path = written(tmp_path / "way.yaml", WAY)
    with of_file(path) as model:
        written(path, OTHER)
        assert model.score([Sample(prompt="", response="x")]).total == [0.5]


def test_a_changed_file_is_refused_and_a_moved_one_is_not(tmp_path):
    path = written(tmp_path / "way.yaml", WAY)
    with of_file(path) as begun:
        state = begun.state()
    with of_file(shutil.copy(path, tmp_path / "moved.yaml")) as moved:
        moved.restore(state)
    with of_file(written(path, OTHER)) as changed:
        changed.restore({})  # of a time before files were looked at
        with pytest.raises(UserError) as told:
            changed.restore(state)
    assert str(told.value) == (
        f"reward_model.way.path={path}: has changed since the run began, and with it the reward; put back what it held,"
        " or begin a new run"
    )


def test_a_models_folder_is_what_it_is_loaded_from(tmp_path):
    for name in ("config.json", "model.safetensors", "tokenizer.json", "README.md"):
        (tmp_path / name).write_text(name)
    before = digest(tmp_path)
    (tmp_path / "README.md").write_text("other")
    assert digest(tmp_path) == before
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        (tmp_path / name).write_text("other")
        assert digest(tmp_path) != before
        (tmp_path / name).write_text(name)
    assert digest(tmp_path) == before
    (tmp_path / "chat_template.jinja").touch()
    assert digest(tmp_path) != before


@pytest.mark.parametrize("size", [0, 5, PIECES * PIECE, PIECES * PIECE + 1, 40 * PIECE])
def test_ends_and_size_of_any_file_count(tmp_path, size):
    file, found = tmp_path / "file", set()
    for change in (None, 0, size // 2, size - 1):
        with file.open("wb") as content:
            content.truncate(size)
            if change is not None and size and (size <= PIECES * PIECE or change in (0, size - 1)):
                content.seek(change)
                content.write(b"x")
        found.add(digest(file))
    assert len(found) == {0: 1, 40 * PIECE: 3, PIECES * PIECE + 1: 3}.get(size, 4)
    file.write_bytes(b"\0" * (size + 1))
    assert digest(file) not in found


def test_every_automaton_is_drawn_once(tmp_path):
    way = AutomatonProgress(path=str(written(tmp_path / "way.yaml", WAY)))
    none = LengthTarget(target_tokens=2, tolerance_tokens=2)
    terms = {"way": way, "adaptive": AdaptiveAutomaton(**WAY), "none": none}
    drawn = draw_automata(terms, tmp_path)
    assert drawn == [tmp_path / "automaton-way.png", tmp_path / "automaton-adaptive.png"]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in drawn)
    assert draw_automata(terms, tmp_path) == []


def test_a_run_is_not_continued_with_another_automaton(entry, tmp_path):
    path = written(tmp_path / "way.yaml", WAY)
    given = ["policy=tiny", "policy.hidden_size=16", "policy.layers=1", "task=sort", "trainer=cpu", "logger=[csv]"]
    given += ["rollout.prompts=2", "rollout.responses_per_prompt=2", "rollout.max_response_tokens=4", "run_dir=a"]
    given += ["trainer.precision=32-true", "rollout.max_prompt_tokens=32", "evaluation.every=0", "reward_workers=1"]
    given += ["reward_model=[automaton]", f"reward_model.automaton.path={path}", "iterations=1"]
    code, _, err = entry(tpg.train, *given)
    assert (code, err) == (0, [])
    assert (tmp_path / "a" / "automaton-automaton.png").read_bytes().startswith(b"\x89PNG")
    written(path, OTHER)
    code, _, err = entry(tpg.train, "resume=a", "iterations=2")
    assert code == 2
    assert [line.split(": ")[:2] for line in err] == [["error", f"reward_model.automaton.path={path}"]]
    written(path, WAY)
    assert entry(tpg.train, "resume=a", "iterations=2")[0] == 0
