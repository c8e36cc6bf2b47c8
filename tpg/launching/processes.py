"""A run of several processes of this machine, started by one that asks them to stop, and tells how they ended."""

import json
import math
import os
import re
import signal
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

from tpg.errors import Interrupted, RankFailed, UserError
from tpg.launching.exchange import POLL_S, Exchange, read, write
from tpg.launching.spec import Report, RunSpec, Spec, carry_out
from tpg.training.checkpoints import StopRequest
from tpg.training.pruning import Pruned
from tpg.training.run_folder import write_atomically
from tpg.training.trainer import TrainerOptions

OF_A_RANK = re.compile(
    r"((LOCAL_|GROUP_|ROLE_)?(RANK|WORLD_SIZE)|NODE_RANK|ROLE_NAME|MASTER_(ADDR|PORT)|(TORCHELASTIC|SLURM|PMI|OMPI)_.*)"
)
"""Variables that tell a process which of several it is."""


def perform(spec: RunSpec, report: Report | None = None) -> dict[str, Any]:
    """Carry out a run here, or in as many processes as it asks for; returns the summary. For a process alone.

    Raises what `carry_out` does, and `RankFailed` when a process failed or was killed.
    """
    if spec.experiment.trainer.processes == 1:
        return carry_out(spec, report=report)
    refuse_other_nodes(spec.experiment.trainer)
    return launched(spec, "tpg.worker", {"watched": spec.watched if report else None}, report)


def refuse_other_nodes(trainer: TrainerOptions) -> None:
    """Raise `UserError`, which says how to do it, if one process alone cannot start the run on all its nodes."""
    nodes, devices = trainer.num_nodes, trainer.devices
    if nodes > 1:
        raise UserError(
            f"trainer.num_nodes={nodes}: this process was started alone and reaches no other node; start the command on"
            f" each by srun --nodes={nodes} --ntasks-per-node={devices} python -m tpg.train ..., or by torchrun"
            f" --nnodes={nodes} --nproc-per-node={devices} --rdzv-backend=c10d --rdzv-endpoint=HOST:29500"
            " -m tpg.train ..."
        )


def launched(spec: Spec[Any], worker: str, more: Mapping[str, Any], report: Report | None = None) -> dict[str, Any]:
    """Have a run carried out by as many processes of the module `worker` as it asks for; returns the summary.

    `more` is told to them beside what the spec holds. Raises as `perform`.
    """
    with TemporaryDirectory(prefix="tpg-run-", ignore_cleanup_errors=True) as place:
        exchange = Exchange(Path(place))
        trainer = spec.experiment.trainer
        write(
            exchange.job,
            {
                "text": spec.text,
                "path": str(spec.path),
                "begun": spec.begun,
                "worker": worker,
                "device": trainer.device_type,
                "tensor_parallel": trainer.tensor_parallel_size,
                "timeout_s": trainer.timeout_s,
                **more,
            },
        )
        stop = StopRequest(spec.stop_file)
        stop.install()
        # A session of its own: Ctrl-C reaches this process alone, which asks the others to stop.
        agent = subprocess.Popen(
            [sys.executable, "-m", "tpg.launching.agent", str(os.getpid()), place, str(trainer.devices)],
            env=_environment(trainer.devices),
            stdin=subprocess.DEVNULL,
            stdout=_descriptor(sys.stdout),
            stderr=_descriptor(sys.stderr),
            start_new_session=True,
        )
        try:
            while agent.returncode is None:
                with suppress(subprocess.TimeoutExpired):
                    agent.wait(POLL_S)
                _pass_on(stop, exchange)
                waiting = exchange.asked() if report else None
                if report is not None and waiting is not None:
                    exchange.answer(report(*waiting))
        finally:
            if agent.poll() is None:
                agent.kill()  # the ranks end with it
                agent.wait()
        return _concluded(exchange, trainer.devices, agent.returncode)


def _environment(count: int) -> dict[str, str]:
    """This process's, without what says of it which rank it is; processors are divided unless that is decided."""
    own = {name: value for name, value in os.environ.items() if not OF_A_RANK.fullmatch(name)}
    processors = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return {"OMP_NUM_THREADS": str(max(1, processors // count)), **own}


def _descriptor(stream: Any) -> int | None:
    """The file that a stream writes to, where there is one."""
    try:
        stream.flush()
        return int(stream.fileno())
    except (AttributeError, OSError, ValueError):
        return None


def _pass_on(stop: StopRequest, exchange: Exchange) -> None:
    number = stop.asked()
    if number is not None and not exchange.stop.exists():
        write_atomically(exchange.stop, str(int(number)))


def _concluded(exchange: Exchange, count: int, code: int) -> dict[str, Any]:
    """The summary that the main process left, or what ended the run."""
    outcomes = {rank: read(exchange.outcome(rank)) for rank in range(count)}
    main = outcomes[0]
    match main.get("kind"):
        case "finished":
            return dict(main["summary"])
        case "mistake":
            raise UserError(main["message"])
        case "interrupted":
            raise Interrupted(main["signal"])
        case "pruned":
            raise Pruned(main["iteration"], main["metric"], main["value"])
    mistakes = [outcome for outcome in outcomes.values() if outcome.get("kind") == "mistake"]
    if mistakes:  # of a rank that had no occasion to tell the others
        raise UserError(min(mistakes, key=lambda outcome: outcome["time"])["message"])
    raise _failure(outcomes, {int(rank): Death(*ended) for rank, ended in read(exchange.agent).items()}, code)


class Death(NamedTuple):
    """How a process ended badly; below 0 by which signal."""

    code: int
    time: int


def _failure(outcomes: dict[int, dict[str, Any]], deaths: dict[int, Death], code: int) -> RankFailed:
    """Of several failures that which caused the others: the earliest death or own error, only then what ranks heard."""
    failed = {rank: outcome for rank, outcome in outcomes.items() if outcome.get("kind") == "failed"}
    killed = {rank: death for rank, death in deaths.items() if death.code < 0}
    own = {rank: outcome for rank, outcome in failed.items() if not outcome["heard"]}
    rank = min(killed, key=lambda rank: killed[rank].time, default=None)
    # A rank that hangs when another has failed is killed by torchrun, later.
    if rank is not None and killed[rank].time <= min((outcome["time"] for outcome in own.values()), default=math.inf):
        by = signal.Signals(-killed[rank].code).name
        hint = "; the machine may have run out of memory" if by == "SIGKILL" else ""
        return RankFailed(f"rank {rank} of {len(outcomes)} was killed by {by}{hint}")
    if failed:
        first = min(own or failed, key=lambda rank: failed[rank]["time"])
        error = RankFailed(f"rank {first} of {len(outcomes)}: {failed[first]['message']}")
        marked = (f"[rank {first}] {line}" for line in failed[first]["traceback"].rstrip().split("\n"))
        error.add_note("\n".join(marked))
        return error
    codes = {rank: death.code for rank, death in deaths.items()}
    ended = json.dumps(codes) if codes else f"the process that started them ended with code {code}"
    return RankFailed(f"the ranks ended without a word: {ended}")
