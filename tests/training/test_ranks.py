"""How processes divide work, exchange what they found, and end together."""

import pytest
import torch.distributed as dist
from processes_of_a_group import in_processes

from tpg.errors import Interrupted, UserError
from tpg.training.parallel.ranks import RankError, Ranks, started_together


class PickyError(Exception):
    """Cannot be made from its message, as pickle would."""

    def __init__(self, code, reason):
        super().__init__(reason)


def test_shares_lie_in_order_and_differ_by_one_at_most():
    assert [list(share) for share in Ranks(0, 3).shares(7)] == [[0, 1], [2, 3], [4, 5, 6]]
    assert [list(share) for share in Ranks(0, 3).shares(2)] == [[], [0], [1]]
    assert Ranks(2, 3).own("abcdefg") == ["e", "f", "g"]


@pytest.mark.parametrize(("rank", "replica"), enumerate([0, 0, 1, 1]))
def test_successive_ranks_are_one_replica(rank, replica):
    ranks = Ranks(rank, 4, tensor_parallel=2)
    assert (ranks.replicas, ranks.replica, ranks.main) == (2, replica, rank == 0)


def test_alone_everything_is_ones_own():
    assert Ranks().each(lambda: 3) == [3]
    assert Ranks().from_main(lambda: 4) == 4
    with pytest.raises(ZeroDivisionError):
        Ranks().together(lambda: 1 / 0)


@pytest.mark.parametrize(
    ("variables", "count"),
    [
        ({}, 1),
        ({"WORLD_SIZE": "4"}, 4),
        ({"SLURM_NTASKS": "8"}, 1),
        ({"SLURM_NTASKS": "8", "SLURM_PROCID": "0"}, 1),
        ({"SLURM_STEP_NUM_TASKS": "8", "SLURM_PROCID": "3"}, 8),
    ],
    ids=["alone", "torchrun", "sbatch", "batch-script", "srun"],
)
def test_who_was_started_together(monkeypatch, variables, count):
    for name in ("WORLD_SIZE", "SLURM_NTASKS", "SLURM_PROCID", "SLURM_STEP_NUM_TASKS"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert started_together() == count


def _exchange():
    ranks = Ranks(dist.get_rank(), 2)

    def failing(error, where):
        def work():
            if ranks.rank == where:
                raise error
            return ranks.rank

        try:
            return ranks.together(work)
        except Exception as found:
            return type(found).__name__, str(found), hasattr(found, "known_to_all")

    return {
        "each": ranks.each(lambda: ranks.rank * 10),
        "main": ranks.from_main(lambda: "said"),
        "any": (ranks.any(ranks.rank == 1), ranks.any(False)),
        "mistake": failing(UserError("task: bad"), 1),
        "interrupted": failing(Interrupted(15), 0),
        "error": failing(ValueError("no"), 1),
        "not to be sent": failing(PickyError(1, "why"), 1),
        "after all that": ranks.each(lambda: ranks.rank),
    }


def test_what_one_raises_ends_all_alike():
    first, second = in_processes(2, _exchange)
    for found in (first, second):
        assert found["each"] == [0, 10]
        assert found["main"] == "said"
        assert found["any"] == (True, False)
        assert found["mistake"] == ("UserError", "task: bad", True)
        assert found["interrupted"] == ("Interrupted", "15", True)
        assert found["after all that"] == [0, 1]
    assert first["error"] == (RankError.__name__, "rank 1: ValueError: no", False)
    assert second["error"] == ("ValueError", "no", True)
    assert first["not to be sent"] == (RankError.__name__, "rank 1: RuntimeError: PickyError: why", False)
    assert second["not to be sent"] == ("RuntimeError", "PickyError: why", True)
