"""A logger that fails is told of once, and the run goes on; a W&B server that does not answer is done without."""

import pytest
import wandb
from iterations import trained

from tpg.errors import UserError
from tpg.training.recording import FolderRecorder
from tpg.training.run_folder import RunFolder
from tpg.training.tracking.loggers import LoggerOptions, Start, WandB, left_by
from tpg.training.tracking.session import Tracking
from tpg.training.tracking.tolerant import Tolerant


class Broken:
    """A client that has lost its server after so many rows."""

    name = "broken"
    rows = ()

    def __init__(self, after=0):
        self.after = after
        self.rows = []

    def log_metrics(self, metrics, step=None):
        if len(self.rows) == self.after:
            self.after = -1
            raise ConnectionError("no server\nat all")
        self.rows.append((step, metrics))

    def log_table(self, key, columns, data, step=None):
        raise BrokenPipeError("gone")


def test_the_run_goes_on_and_later_rows_are_tried(tmp_path, capsys):
    folder = RunFolder(tmp_path)
    logger = Broken(after=1)
    tolerant = Tolerant("wandb", logger)

    class Recorder(FolderRecorder):
        def on_iteration_end(self, module, iteration):
            module.trainer.loggers = [tolerant]
            super().on_iteration_end(module, iteration)

    trained(tmp_path / "trained", iterations=3, callbacks=[Recorder(folder, tables_every=1)])
    assert [step for step, _ in logger.rows] == [1, 3]
    assert [row["iteration"] for row in folder.rows()] == ["1", "2", "3"]
    told = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning: ")]
    # The table of the first iteration fails before the row of the second.
    assert told == [
        "warning: logger.wandb: BrokenPipeError: gone; the run goes on without what it could not log there; metrics.csv"
        " has every row"
    ]


def test_it_offers_what_the_other_does_and_no_more():
    tolerant = Tolerant("wandb", Broken())
    assert hasattr(tolerant, "log_table")
    assert tolerant.name == "broken"
    assert tolerant.after == 0
    assert not hasattr(tolerant, "log_image")
    assert tolerant.save_dir is None


class Options(LoggerOptions):
    """A logger that fails at the end."""

    def build(self, start):
        return Broken()

    def finish(self, logger, folder, summary):
        raise ConnectionError("no server")

    def close(self, logger, outcome):
        raise ConnectionError("no server")


def test_a_logger_that_fails_at_the_end_fails_no_run(tmp_path, capsys):
    with Tracking({"wandb": Options()}, RunFolder(tmp_path), {"run_id": "x"}, 0) as tracking:
        tracking.finish({"iterations": 3})
    told = capsys.readouterr().err.splitlines()
    assert [line for line in told if line.startswith("warning: logger.wandb: ConnectionError: no server;")] == told
    assert len(told) == 1


class Unreachable(LoggerOptions):
    """A logger whose server is down when the run begins."""

    def build(self, start):
        raise ConnectionError("no server\nat all")


class Wrong(LoggerOptions):
    """A logger whose options are a mistake."""

    def build(self, start):
        raise UserError("logger.mlflow.tracking_uri: no such place")


def test_a_logger_that_cannot_be_begun_is_done_without(tmp_path, capsys):
    with Tracking({"mlflow": Unreachable(), "wandb": Options()}, RunFolder(tmp_path), {"run_id": "x"}, 0) as tracking:
        assert len(tracking.loggers) == 1
        tracking.finish({"iterations": 3})
    told = capsys.readouterr().err.splitlines()
    assert told[0] == (
        "warning: logger.mlflow: ConnectionError: no server at all; the run goes on without it; metrics.csv has every"
        " row"
    )
    assert [line for line in told if "logger.mlflow" in line] == told[:1]


def test_a_mistake_in_its_options_still_ends_the_run(tmp_path):
    with (
        pytest.raises(UserError, match=r"^logger.mlflow.tracking_uri: no such place$"),
        Tracking({"mlflow": Wrong()}, RunFolder(tmp_path), {"run_id": "x"}, 0),
    ):
        pass


def test_what_guards_found_is_left_to_the_loggers(tmp_path):
    for name in ("guards.jsonl", "metrics.csv", "environment.json"):
        (tmp_path / name).write_text("")
    assert [path.name for path in left_by(tmp_path)] == ["metrics.csv", "guards.jsonl"]


def start(tmp_path):
    (tmp_path / "environment.json").write_text("[]")
    return Start(tmp_path, "abc", {}, 0, (tmp_path / "environment.json",))


def test_without_an_answer_wandb_logs_offline(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("WANDB_DATA_DIR", str(tmp_path))
    begin, modes = wandb.init, []

    def init(**given):
        modes.append(given["mode"])
        assert given["settings"].init_timeout == 60
        if given["mode"] == "online":
            raise wandb.errors.CommError("timed out\nafter 60 s")
        return begin(**given)

    monkeypatch.setattr(wandb, "init", init)
    options = WandB(mode="online")
    logger = options.build(start(tmp_path))
    logger.log_metrics({"reward": 1.0}, step=1)
    options.close(logger, "finished")
    assert modes == ["online", "offline"]
    assert [path.suffix for path in tmp_path.glob("wandb/offline-run-*-abc/*.wandb")] == [".wandb"]
    told = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning: ")]
    assert told == [
        "warning: logger.wandb: no answer from the server (timed out after 60 s): logging offline; upload with"
        f" `wandb sync {tmp_path}/wandb/offline-run-*`"
    ]


@pytest.mark.long
def test_a_server_that_is_not_there_is_waited_for_a_bounded_time(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("WANDB_DATA_DIR", str(tmp_path))
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("WANDB_API_KEY", "a" * 40)
    options = WandB(mode="online")
    logger = options.build(start(tmp_path))
    options.close(logger, "finished")
    assert "logging offline" in capsys.readouterr().err
    assert list(tmp_path.glob("wandb/offline-run-*-abc/*.wandb"))
