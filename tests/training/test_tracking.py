"""What is recorded of a run's start, and how its loggers begin and end."""

import json
import subprocess
import sys

import pytest

from tpg.audit.callback import AuditVerdict
from tpg.errors import Interrupted, UserError
from tpg.training.pruning import Pruned
from tpg.training.run_folder import RunFolder
from tpg.training.tracking.loggers import LoggerOptions
from tpg.training.tracking.session import Tracking, record_environment


def git(folder, *words):
    identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
    command = ["git", "-C", str(folder), *identity, *words]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def test_a_start_is_recorded_with_the_code_that_ran(tmp_path, monkeypatch):
    code, folder = tmp_path / "code", tmp_path / "run"
    code.mkdir()
    folder.mkdir()
    git(code, "init", "-q")
    (code / "mine.py").write_text("a = 1\n")
    git(code, "add", ".")
    git(code, "commit", "-qm", "first")
    monkeypatch.chdir(code)
    monkeypatch.setattr(sys, "argv", ["/somewhere/tpg-train", "seed=1"])
    clean = record_environment(folder, 0)["git"][0]
    assert clean == {
        "root": str(code),
        "commit": git(code, "rev-parse", "HEAD"),
        "branch": git(code, "rev-parse", "--abbrev-ref", "HEAD"),
        "dirty": False,
        "untracked": [],
    }
    (code / "mine.py").write_text("a = 2\n")
    (code / "new.py").write_text("b = 1\n")
    second = record_environment(folder, 5)
    assert second["git"][0]["dirty"]
    assert second["git"][0]["untracked"] == ["new.py"]
    assert second["command"] == ["tpg-train", "seed=1"]
    assert second["packages"]["pytest"] == pytest.__version__
    assert "-a = 1\n+a = 2\n" in (folder / "code-000005.diff").read_text()
    starts = json.loads((folder / "environment.json").read_text())
    assert [start["after_iteration"] for start in starts] == [0, 5]


def test_without_git_a_start_is_recorded_too(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    record = record_environment(tmp_path, 0)
    assert (record["git"], record["diff"]) == ([], None)


class Recorded(LoggerOptions):
    """A logger that remembers how it ended."""

    def __init__(self, ended, fails=False):
        self.ended, self.fails = ended, fails

    def build(self, start):
        if self.fails:
            raise UserError("no server")
        return object()

    def close(self, logger, outcome):
        self.ended.append(outcome)


@pytest.mark.parametrize(
    ("error", "outcome"),
    [(None, "finished"), (Interrupted(15), "interrupted"), (Pruned(3, "reward", 0.1), "pruned"), (OSError(), "failed")],
)
def test_every_logger_is_closed_and_told_how_the_run_ended(tmp_path, error, outcome):
    ended = []

    def end():
        with Tracking({"a": Recorded(ended), "b": Recorded(ended)}, RunFolder(tmp_path), {"run_id": "x"}, 0):
            if error:
                raise error

    if error:
        with pytest.raises(type(error)):
            end()
    else:
        end()
    assert ended == [outcome, outcome]


def test_a_logger_that_cannot_start_leaves_none_open(tmp_path):
    ended = []
    tracking = Tracking({"a": Recorded(ended), "b": Recorded([], fails=True)}, RunFolder(tmp_path), {"run_id": "x"}, 0)
    with pytest.raises(UserError, match="no server"):
        tracking.__enter__()
    assert ended == ["failed"]


@pytest.mark.parametrize(
    ("given", "expected"),
    [({"worlds": 0}, "worlds=0: should be greater than or equal to 1"), ({"horizon": 9}, "horizon=9: should be less")],
)
def test_the_audit_beside_a_run_checks_its_options(given, expected):
    with pytest.raises(ValueError, match=expected):
        AuditVerdict(**given)
