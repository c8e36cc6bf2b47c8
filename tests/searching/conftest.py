"""A search in this process, of trials that train or that only say so."""

from functools import partial

import pytest
from hydra.core.config_store import ConfigStore

import tpg.sweep


@pytest.fixture
def run(entry, monkeypatch):
    """The search in this process."""
    monkeypatch.setattr(ConfigStore.instance(), "repo", {**ConfigStore.instance().repo})
    ConfigStore.instance().repo.pop("sweep", None)
    return partial(entry, tpg.sweep)


@pytest.fixture
def imagined(monkeypatch):
    """Trials that train nothing; the list of what they were asked for, and the rule that gives their summary."""

    class Imagined:
        def __init__(self):
            self.asked = []
            self.value = lambda experiment: {"eval/reward": experiment.optimizer.lr}

        def run(self, experiment, prepared, folder, config, stop_file=None, ranks=None):
            self.asked.append((experiment.seed, experiment.optimizer.lr))
            return {"num_tokens": 10 * experiment.seed + 10, "last": {}, **self.value(experiment)}

    made = Imagined()
    monkeypatch.setattr("tpg.launching.spec.prepare", lambda experiment: None)
    monkeypatch.setattr("tpg.launching.spec.run", made.run)
    return made
