"""What guards said while a run went on is in its report, and a broken record breaks nothing."""

import json

from made_runs import config, make_run, rows

from tpg.reporting.comparing.concerns import concerns
from tpg.reporting.comparing.runs import find_runs
from tpg.reporting.guard_records import read_records

SAID = [
    {"iteration": 2, "guard": "kl", "event": "began", "told": "kl 200 is above 100", "remedy": "raise kl.coefficient"},
    {"iteration": 3, "guard": "kl", "event": "ended"},
    {"iteration": 3, "guard": "no <b>signal</b>", "event": "stopped", "told": "x is above 1", "remedy": ""},
]


def test_a_report_lists_what_the_guards_of_each_run_said(tmp_path):
    for name in ("quiet", "loud", "stopped"):
        make_run(tmp_path / name, config(), rows([0.1, 0.2, 0.3, 0.4] if name != "stopped" else [0.1, 0.2, 0.3]))
    lines = [json.dumps(each) + "\n" for each in SAID]
    (tmp_path / "loud" / "guards.jsonl").write_text("".join(lines[:2]))
    (tmp_path / "stopped" / "guards.jsonl").write_text("".join(lines))
    found = {each.title: each for each in concerns(find_runs([str(tmp_path)]).runs)}
    told = {"loud": "iteration 2: kl 200 is above 100", "stopped": "iteration 2: kl 200 is above 100"}
    assert (found["Guard kl"].runs, found["Guard kl"].advice) == (told, "Raise kl.coefficient.")
    other = found["Guard no <b>signal</b>"]
    assert other.runs == {"stopped": "iteration 3, where the run was stopped: x is above 1"}
    assert other.advice == ""


def test_lines_that_are_no_records_are_left_out(tmp_path):
    path = tmp_path / "guards.jsonl"
    assert read_records(path) == []
    path.write_bytes(
        b'{"iteration": 1, "guard": "a", "event": "began"}\n\n5\n{"iteration": "x"}\n{"iteration": 2, "gu\xff'
    )
    assert read_records(path) == [{"iteration": 1, "guard": "a", "event": "began"}]
