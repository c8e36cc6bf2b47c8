"""Processes that torchrun or srun started: what rank 0 decides, and what is refused."""

import pytest
import yaml
from small_runs import TINY, TWO

import tpg.launching.spec
import tpg.sweep
import tpg.train
from tpg.training.parallel.ranks import Ranks


class Others(Ranks):
    """Rank 0 of two, the other of which composed the same but for what `said` changes."""

    def __init__(self, said):
        super().__init__(0, 2)
        object.__setattr__(self, "said", said)

    def each(self, work):
        mine = work()
        return [mine, self.said(mine)] if isinstance(mine, dict) and "compared" in mine else [mine, mine]


@pytest.fixture
def together(monkeypatch):
    """This process as rank 0 of two; `together(said)` tells how the other's word differs."""
    begun = []

    def meet(said):
        monkeypatch.setenv("WORLD_SIZE", "2")
        monkeypatch.setattr("tpg.training.parallel.ranks.joined", lambda *_: Others(said))
        monkeypatch.setattr(
            "tpg.launching.spec.carry_out", lambda spec, ranks: begun.append(spec) or {"reward/last": 1}
        )
        return begun

    return meet


def test_rank_0_decides_what_depends_on_time(entry, together, tmp_path):
    compared = []
    begun = together(lambda mine: compared.append(mine["compared"]) or {**mine, "text": "", "path": tmp_path / "other"})
    code, _, err = entry(tpg.train, *TWO, "run_dir=a", "logger=[wandb]", "logger.wandb.group='${now:%f}'")
    assert (code, err) == (0, [])
    assert begun[0].path == tmp_path / "a"
    assert yaml.safe_load(compared[0])["logger"]["wandb"]["group"] == "%f"
    assert yaml.safe_load(begun[0].text)["logger"]["wandb"]["group"].isdigit()


def test_ranks_of_other_arguments_are_refused(entry, together, tmp_path):
    together(lambda mine: mine | {"compared": mine["compared"].replace("lr: 0.001", "lr: 0.5")})
    code, _, err = entry(tpg.train, *TWO, "run_dir=a")
    assert code == 2
    assert err == [
        "error: optimizer.lr: rank 0 was given 0.001 and rank 1 0.5; start every process with the same arguments"
    ]
    assert not (tmp_path / "a").exists()


def test_as_many_processes_take_part_as_the_trainer_counts(entry, together):
    together(lambda mine: mine)
    code, _, err = entry(tpg.train, *TWO, "trainer.devices=4", "run_dir=a")
    assert code == 2
    assert err == [
        "error: trainer.devices=4: 2 processes were started together, and trainer.devices x trainer.num_nodes is 4;"
        " start 4, or give trainer.devices=<those of a node>"
    ]
    code, _, err = entry(tpg.train, *TINY, "trainer=cpu", "run_dir=a")
    assert code == 2
    assert err[0].endswith("is 1; start one alone, or give trainer=ddp trainer.devices=<those of a node>")
