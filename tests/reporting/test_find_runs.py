"""Runs are found in folders, globs and lists, and other things are passed over with a note."""

import pytest
from made_runs import config, make_run, rows

from tpg.errors import UserError
from tpg.reporting.comparing.runs import find_runs, open_run


def some_run(folder, seed=0, **options):
    return make_run(folder, config(seed), rows([0.1, 0.2, 0.3, 0.4]), **options)


def names(*places):
    return [run.name for run in find_runs([str(place) for place in places]).runs]


def test_runs_are_found_at_any_depth_in_the_order_of_their_numbers(tmp_path):
    for name in ("10-rloo", "9-rloo", "deep/er/1-rloo"):
        some_run(tmp_path / name)
    assert names(tmp_path) == ["9-rloo", "10-rloo", "deep/er/1-rloo"]


def test_a_run_itself_a_glob_and_a_list(tmp_path):
    for name in ("a1", "a2", "b1"):
        some_run(tmp_path / name)
    assert names(tmp_path / "a1") == ["a1"]
    assert names(tmp_path / "a*") == ["a1", "a2"]
    assert names(tmp_path / "b1", tmp_path / "a2") == ["b1", "a2"]


def test_a_run_named_twice_is_one(tmp_path):
    some_run(tmp_path / "a")
    assert names(tmp_path, tmp_path / "a", tmp_path / "*") == ["a"]


def test_what_is_read_of_a_run(tmp_path):
    some_run(tmp_path / "a", seed=3, final=0.6)
    (run,) = find_runs([str(tmp_path)]).runs
    assert (run.seed, run.finished, run.state, run.final) == (3, True, "finished", {"eval/reward": 0.6})
    assert (run.tokens, run.seconds) == (400, 8)
    assert run.column("reward") == [0.1, 0.2, 0.3, 0.4]
    assert run.completions is None


def test_an_unfinished_run_says_how_far_it_came(tmp_path):
    make_run(tmp_path / "a", config(), rows([0.1, 0.2]), finished=False)
    make_run(tmp_path / "b", config(), [], finished=False)
    assert [run.state for run in find_runs([str(tmp_path)]).runs] == [
        "unfinished, 2 of 4 iterations",
        "unfinished, 0 of 4 iterations",
    ]


def test_a_run_that_is_being_continued_is_unfinished_though_it_has_a_summary(tmp_path):
    folder = some_run(tmp_path / "a", final=0.6)
    longer = config(iterations=8)
    make_run(tmp_path / "b", longer, rows([0.1, 0.2, 0.3, 0.4, 0.5]), finished=False)
    (tmp_path / "b" / "summary.json").write_text((folder / "summary.json").read_text())
    _, run = find_runs([str(tmp_path)]).runs
    assert (run.state, run.final) == ("unfinished, 5 of 8 iterations", {})


def test_a_torn_last_line_is_no_row(tmp_path):
    folder = some_run(tmp_path / "a", finished=False)
    with (folder / "metrics.csv").open("a") as file:
        file.write("5,0.5")
    assert len(find_runs([str(tmp_path)]).runs[0].rows) == 4


def test_other_things_are_passed_over_with_a_note(tmp_path):
    some_run(tmp_path / "a")
    for name, text in {"audit": "seed: 0", "other": "model: x", "broken": "a: [", "empty": ""}.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.yaml").write_text(text)
    (tmp_path / "audit" / "audit.json").write_text("{}")
    inside = tmp_path / "a" / "wandb" / "offline-run-1" / "files"
    inside.mkdir(parents=True)
    (inside / "config.yaml").write_text("seed: 0")
    found = find_runs([str(tmp_path)])
    assert [run.name for run in found.runs] == ["a"]
    assert sorted(note.split(":")[0] for note in found.notes) == [
        "audit is an audit",
        "broken/config.yaml cannot be read",
        "empty is no run of tpg.train",
        "other is no run of tpg.train",
    ]


def test_a_broken_summary_is_noted(tmp_path):
    (some_run(tmp_path / "a") / "summary.json").write_text("{")
    found = find_runs([str(tmp_path)])
    assert found.notes == ["a/summary.json cannot be read"]
    assert not found.runs[0].finished


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("sweeb", "runs={0}/sweeb: no such folder; did you mean sweep?"),
        ("none*", "runs={0}/none*: matches no folder"),
        ("empty", "runs={0}/empty: no run in it or below: no config.yaml of tpg.train"),
    ],
)
def test_a_place_without_runs_is_refused(tmp_path, place, message):
    (tmp_path / "sweep").mkdir()
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError) as refused:
        find_runs([f"{tmp_path}/{place}"])
    assert str(refused.value) == message.format(tmp_path)


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("nope", "nope: no such folder"),
        ("sweep", "sweep: holds no run: there is no config.yaml in it; name one of those below it"),
        ("new", "new: the run in it has finished no iteration yet"),
    ],
)
def test_one_run_is_opened_or_refused(tmp_path, monkeypatch, place, message):
    monkeypatch.chdir(tmp_path)
    some_run(tmp_path / "sweep" / "a")
    make_run(tmp_path / "new", config(), [], finished=False)
    assert open_run("sweep/a")[0].name == "a"
    with pytest.raises(UserError) as refused:
        open_run(place)
    assert str(refused.value) == message
