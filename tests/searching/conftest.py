"""A search in this process, of trials that train or that only say so."""

import sys

import pytest
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra

import tpg.jobs
import tpg.sweep


@pytest.fixture
def run(monkeypatch, tmp_path, capsys):
    """In this process and an empty folder: exit code, what is printed, lines on stderr."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")  # set by the entry; here so that it is undone
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(tpg.jobs, "WANTS_TRACEBACK", False)
    monkeypatch.setattr(ConfigStore.instance(), "repo", {**ConfigStore.instance().repo})
    ConfigStore.instance().repo.pop("sweep", None)

    def call(*arguments):
        GlobalHydra.instance().clear()
        monkeypatch.setattr(sys, "argv", ["tpg-sweep", *arguments])
        code = 0
        try:
            tpg.sweep.main()
        except SystemExit as end:
            code = end.code
        out, err = capsys.readouterr()
        return code, out, err.splitlines()

    yield call
    GlobalHydra.instance().clear()


@pytest.fixture
def imagined(monkeypatch):
    """Trials that train nothing; the list of what they were asked for, and the rule that gives their summary."""

    class Imagined:
        def __init__(self):
            self.asked = []
            self.value = lambda experiment: {"eval/reward": experiment.optimizer.lr}

        def run(self, experiment, prepared, folder, config):
            self.asked.append((experiment.seed, experiment.optimizer.lr))
            return {"num_tokens": 10 * experiment.seed + 10, "last": {}, **self.value(experiment)}

    made = Imagined()
    monkeypatch.setattr("tpg.searching.trial.prepare", lambda experiment: None)
    monkeypatch.setattr("tpg.searching.trial.run", made.run)
    return made
