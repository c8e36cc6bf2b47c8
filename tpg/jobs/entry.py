"""How an entry runs its job, alone or in a sweep: how it ends, and what is said of mistakes."""

import math
import multiprocessing
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from tpg.errors import Interrupted, RankFailed, UserError, one_line, with_kind
from tpg.jobs.configs import CONF, job_of_sweep, own_config, refuse_other_config
from tpg.jobs.records import LAUNCHED, Job
from tpg.redaction import refuse_in_words

WANTS_TRACEBACK = "HYDRA_FULL_ERROR" in os.environ


def refuse_ranks(what: str = "sweep") -> None:
    """Raise `UserError` if this process is one of several that were started together: each would lead the jobs."""
    from tpg.training.parallel.ranks import started_together

    count = started_together()
    if count > 1:
        raise UserError(
            f"{count} processes were started together (torchrun, srun), and a {what} is led by one; start it alone:"
            " each job starts the processes that its trainer.devices asks for"
        )


def reported(action: Callable[[DictConfig], float], config: DictConfig) -> float:
    """Run a job; a user's mistake ends in one line and exit code 2, an interruption in 130 or 143.

    In a multirun a failure ends its own job only, whose value is NaN.
    """
    hydra_config = HydraConfig.get()
    if hydra_config.mode == RunMode.MULTIRUN:
        return _reported_in_sweep(action, config, job_of_sweep(config, hydra_config))
    try:
        return action(config)
    except Interrupted as interruption:
        sys.exit(128 + int(interruption.args[0]))
    except Exception as error:
        if WANTS_TRACEBACK:
            raise
        sys.exit(_told(error))


def _reported_in_sweep(action: Callable[[DictConfig], float], config: DictConfig, job: Job) -> float:
    launch, earlier, began = job.launch, job.earlier, time.monotonic()
    if earlier is not None and earlier.launch == launch.id and earlier.state == "refused":
        return math.nan
    if launch.stop.exists():
        job.note("not begun")
        return math.nan
    if not LAUNCHED and multiprocessing.get_start_method() == "loky":
        # A process of joblib's hands this method down to those it starts, which do not know it.
        multiprocessing.set_start_method("spawn", force=True)
    listening = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        with job.alone():
            if launch.continues and not config.get("resume"):
                composed = own_config(config)
                refuse_other_config(job, composed)
                if earlier is not None and earlier.complete and job.folder.is_dir() and job.config.is_file():
                    job.note("skipped")
                    print(f"job {job.number} ({' '.join(job.swept)}): finished before, skipped", flush=True)
                    return math.nan if earlier.value is None else earlier.value
                job.keep_config(OmegaConf.to_yaml(OmegaConf.create(composed)))
            job.note("running")
            print(f"\njob {job.number} ({' '.join(job.swept)})", flush=True)
            value = action(config)
            job.note("finished", value=value, seconds=time.monotonic() - began)
            if LAUNCHED and signal.getsignal(signal.SIGINT) == signal.SIG_DFL and not launch.stop.exists():
                launch.request_stop(signal.SIGINT)  # it came too late for this run, which no longer listens
            _listen(listening)
            return value
    except Interrupted as interruption:
        job.note("interrupted", code=128 + int(interruption.args[0]), seconds=time.monotonic() - began)
        if LAUNCHED and not launch.stop.exists():
            launch.request_stop(int(interruption.args[0]))
    except Exception as error:
        _failed(job, error, time.monotonic() - began)
        _listen(listening)
    return math.nan


def _listen(handlers: dict[signal.Signals, Any]) -> None:
    """Let the sweep hear again what its job listened to."""
    for number, handler in handlers.items():
        signal.signal(number, handler)


def _failed(job: Job, error: Exception, seconds: float) -> None:
    """Keep why a job failed; told at once in the sweep's own process, by it in the end else."""
    message = mistake(error)
    code = 1 if message is None else 2
    if message is None:
        text = "".join(traceback.format_exception(error))
        kept = job.keep_traceback(text)
        message = f"{with_kind(error)} (traceback: {kept})"
        if job.launch.wants_traceback:
            print(text, file=sys.stderr)
    record = job.note("failed", error=message, code=code, seconds=seconds, told=bool(LAUNCHED))
    if LAUNCHED:
        print(f"error: {record.label}: {message}", file=sys.stderr)


def run_entry(entry: Callable[[], Any]) -> None:
    """Run a Hydra entry; what Hydra refuses to compose is told in one line too. Of a multirun, tell how it ended."""
    os.environ["HYDRA_FULL_ERROR"] = "1"
    LAUNCHED.clear()
    code = 0
    try:
        refuse_in_words(sys.argv[1:])
        entry()
    except Exception as error:
        if WANTS_TRACEBACK:
            raise
        if LAUNCHED and LAUNCHED[0].records():
            print(f"error: the launcher gave up: {with_kind(error)}", file=sys.stderr)
            code = 1
        else:
            code = _told(error, composing=True)
    finally:
        if LAUNCHED:
            from tpg.jobs.multirun import concluded

            code = concluded(LAUNCHED.pop(), code)
    if code:
        sys.exit(code)


def _told(error: Exception, composing: bool = False) -> int:
    """Tell a user's mistake in one line, anything else with its traceback; the exit code."""
    message = mistake(error, composing)
    if isinstance(error, RankFailed):
        print(*getattr(error, "__notes__", ()), f"error: {error}", sep="\n", file=sys.stderr)
        return 1
    if message is None:
        traceback.print_exception(error)
        return 1
    print(f"error: {message}", file=sys.stderr)
    return 2


def mistake(error: Exception, composing: bool = False) -> str | None:
    """A user's mistake in one line; None if it is not the user's."""
    if isinstance(error, UserError):
        return one_line(error)
    if composing or isinstance(error, HydraException | OmegaConfBaseException):
        from tpg.composition import composition_error

        return composition_error(error, [word for word in sys.argv[1:] if not word.startswith("-")], CONF)
    return None
