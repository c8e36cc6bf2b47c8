"""What the entries share: a job's config and folder, how it ends, and what is said of mistakes."""

import math
import multiprocessing
import os
import re
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from tpg.errors import Interrupted, RankFailed, UserError, one_line, with_kind
from tpg.job_records import Job, Launch
from tpg.leaves import leaves
from tpg.redaction import refuse_in_words

if TYPE_CHECKING:
    from tpg.training.experiment import Experiment

CONF = Path(__file__).parent / "conf"
CONF = CONF if CONF.is_dir() else Path(__file__).parent.parent / "conf"

WANTS_TRACEBACK = "HYDRA_FULL_ERROR" in os.environ
BOOKKEEPING = ("run_dir", "resume", "run_id", "choices")
"""Keys of a run's config that say which run it is rather than what it does."""

LAUNCHED: list[Launch] = []
"""The sweep that this process leads, if it leads one; its jobs may run in other processes."""


def own_config(config: DictConfig, hydra: Any = None) -> dict[str, Any]:
    """The resolved config, with the options that were chosen and the run's id; a sweep's jobs with group and tags."""
    from tpg.composition import storable, with_shadow_options

    hydra = hydra or HydraConfig.get()
    plain = with_shadow_options(storable(config))
    if hydra.mode == RunMode.MULTIRUN:
        job = job_of_sweep(config, hydra)
        for logger in plain.get("logger", {}).values():
            if isinstance(logger, dict) and {"group", "tags"} <= set(logger):
                logger["group"] = logger["group"] or job.launch.folder.name
                logger["tags"] = [*logger["tags"], *(override[:64] for override in job.swept)]
    choices = {str(k): v for k, v in hydra.runtime.choices.items() if not str(k).startswith("hydra/")}
    # An agent of a W&B sweep has named the run; to be continued it must be known by that name.
    named = os.environ.get("WANDB_RUN_ID") if "WANDB_SWEEP_ID" in os.environ and hydra.mode == RunMode.RUN else None
    return {**plain, "choices": choices, "run_id": named or os.urandom(4).hex()}


def new_folder(config: DictConfig, method: str) -> Path:
    """Where the run will live; in a multirun a folder for each job, named by its overrides."""
    hydra_config = HydraConfig.get()
    if hydra_config.mode == RunMode.MULTIRUN:
        return job_of_sweep(config, hydra_config).folder
    if config.run_dir is not None:
        return Path(config.run_dir).absolute()
    # An option may be named by a path, as algorithm=../mine/grpo is.
    parent = Path("outputs") / re.sub(r"[^A-Za-z0-9_.+-]+", "-", method).strip("-.")
    name = datetime.now().strftime("%Y-%m-%d_%H-%M-%S")
    taken = sum(1 for _ in parent.glob(f"{name}*"))
    return (parent / (f"{name}-{taken}" if taken else name)).absolute()


def job_of_sweep(config: DictConfig, hydra: Any = None) -> Job:
    """The job of a multirun that this config is of."""
    hydra = hydra or HydraConfig.get()
    folder = Path(config.resume) if config.get("resume") else None
    launch = LAUNCHED[0] if LAUNCHED else Launch.opened(Path(hydra.sweep.dir))
    return Job(launch, int(hydra.job.num), list(hydra.overrides.task), folder, f"seed_{config.seed}")


def refuse_other_config(job: Job, composed: dict[str, Any]) -> None:
    """Raise `UserError` that names the keys if the job's folder holds a run of another config."""
    if not job.folder.is_dir() or not job.config.is_file():
        return
    refuse_other_run(job.folder, job.config, composed, "give the sweep another run_dir, or that run's config")


def refuse_other_run(folder: Path, config: Path, composed: dict[str, Any], remedy: str) -> None:
    """Raise `UserError` that names the keys if a folder's run has another config than this one."""
    stored: Any = OmegaConf.to_container(OmegaConf.load(config))
    now: Any = OmegaConf.to_container(OmegaConf.create(OmegaConf.to_yaml(OmegaConf.create(composed))))
    differing = differences(stored, now)
    if differing:
        first, *more = differing
        was, is_now = differing[first]
        others = f"; also other: {', '.join(more[:5])}" if more else ""
        raise UserError(f"{first}={is_now}: {folder} holds a run with {first}={was}{others}; {remedy}")


def differences(one: dict[str, Any], other: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """The keys in which two configs say other things of what a run does, with both values."""
    first, second = leaves(_doing(one)), leaves(_doing(other))
    values = {key: (first.get(key, "absent"), second.get(key, "absent")) for key in {**first, **second}}
    return {key: (value, otherwise) for key, (value, otherwise) in values.items() if value != otherwise}


def refuse_ranks(what: str = "sweep") -> None:
    """Raise `UserError` if this process is one of several that were started together: each would lead the jobs."""
    from tpg.training.parallel.ranks import started_together

    count = started_together()
    if count > 1:
        raise UserError(
            f"{count} processes were started together (torchrun, srun), and a {what} is led by one; start it alone:"
            " each job starts the processes that its trainer.devices asks for"
        )


def experiment_of(stored: dict[str, Any]) -> "Experiment":
    """The experiment that a run's config describes. Raises `UserError` at the first mistake."""
    from tpg.composition import to_experiment

    return to_experiment(OmegaConf.create({key: value for key, value in stored.items() if key not in BOOKKEEPING}))


def _doing(config: dict[str, Any]) -> dict[str, Any]:
    """What a config says of what the run does: without its name and how it is grouped."""
    loggers = {
        name: {key: value for key, value in logger.items() if key not in ("group", "tags")}
        for name, logger in config.get("logger", {}).items()
    }
    return {**{key: value for key, value in config.items() if key not in BOOKKEEPING}, "logger": loggers}


def with_groups(words: Sequence[str]) -> list[str]:
    """Arguments in which `against=[...]` chooses options of `reward_model`, so that their keys can be overridden."""
    return [f"reward_model@{word}" if word.startswith("against=") else word for word in words]


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
            from tpg.multirun import concluded

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
