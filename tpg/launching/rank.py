"""One rank of a run that another process launched: `python -m MODULE FOLDER AGENT`."""

import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tpg.errors import with_kind
from tpg.launching.exchange import Exchange, end_with, keep_quiet, write


def take_part(run: Callable[[Exchange], dict[str, Any]]) -> None:
    """Do this rank's share by `run`, which gives the summary, and leave word of how it ended."""
    exchange, rank = Exchange(Path(sys.argv[1])), int(os.environ["RANK"])
    end_with(int(sys.argv[2]))
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    if rank:
        keep_quiet(rank)
    outcome = _outcome(run, exchange)
    write(exchange.outcome(rank), outcome)
    sys.stdout.flush()
    sys.stderr.flush()
    if outcome["kind"] != "finished":
        os._exit(1)  # what else would end by waiting for a rank that is no more


def _outcome(run: Callable[[Exchange], dict[str, Any]], exchange: Exchange) -> dict[str, Any]:
    try:
        from tpg.errors import Interrupted, UserError
        from tpg.training.parallel.ranks import RankError, left
        from tpg.training.pruning import Pruned

        try:
            summary = run(exchange)
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
