"""`python -m tpg.worker FOLDER AGENT`: one rank of a run that another process launched and describes there."""

import os
import signal
import sys
import time
import traceback
from pathlib import Path
from typing import Any

from tpg.errors import with_kind
from tpg.launching.exchange import Exchange, end_with, keep_quiet, read, write


def main() -> None:
    """Take part, and leave word of how it ended."""
    exchange, rank = Exchange(Path(sys.argv[1])), int(os.environ["RANK"])
    end_with(int(sys.argv[2]))
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    if rank:
        keep_quiet(rank)
    outcome = _outcome(exchange)
    write(exchange.outcome(rank), outcome)
    sys.stdout.flush()
    sys.stderr.flush()
    if outcome["kind"] != "finished":
        os._exit(1)  # what else would end by waiting for a rank that is no more


def _outcome(exchange: Exchange) -> dict[str, Any]:
    try:
        from tpg.errors import Interrupted, UserError
        from tpg.training.parallel.ranks import RankError, left
        from tpg.training.pruning import Pruned

        try:
            summary = _run(exchange)
            left()
            return {"kind": "finished", "summary": summary}
        except UserError as error:
            return {"kind": "mistake", "message": str(error), "time": time.time()}
        except Interrupted as interruption:
            return {"kind": "interrupted", "signal": int(interruption.args[0])}
        except Pruned as pruned:
            return {"kind": "pruned", "iteration": pruned.iteration, "metric": pruned.metric, "value": pruned.value}
        except RankError as error:
            return {**_failed(error), "heard": True}
    except Exception as error:
        return _failed(error)


def _failed(error: Exception) -> dict[str, Any]:
    return {
        "kind": "failed",
        "message": with_kind(error),
        "traceback": "".join(traceback.format_exception(error)),
        "heard": False,
        "time": time.time(),
    }


def _run(exchange: Exchange) -> dict[str, Any]:
    from omegaconf import OmegaConf

    from tpg.composition import find_user_modules
    from tpg.jobs import experiment_of
    from tpg.launching.spec import RunSpec, carry_out
    from tpg.training.parallel.ranks import joined

    job = read(exchange.job)
    find_user_modules()
    ranks = joined(job["device"], job["tensor_parallel"], job["timeout_s"])
    stored: Any = OmegaConf.to_container(OmegaConf.create(job["text"]))
    spec = RunSpec(
        experiment=ranks.together(lambda: experiment_of(stored)),
        config=stored,
        text=job["text"],
        path=Path(job["path"]),
        begun=job["begun"],
        stop_file=exchange.stop,
        watched=job["watched"],
    )
    return carry_out(spec, ranks, exchange.ask if job["watched"] else None)


if __name__ == "__main__":
    main()
