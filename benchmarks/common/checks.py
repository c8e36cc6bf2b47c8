"""What can be wrong with a command line beyond types and ranges, found before anything is loaded."""

from collections.abc import Callable
from dataclasses import replace
from datetime import datetime
from pathlib import Path

from pydantic import ValidationError

from benchmarks.iteration.options import Device, StepOptions
from tpg.errors import UserError


def check_sweeps(options: StepOptions) -> None:
    """Raise `UserError` for a value that a sweep cannot take."""
    for sweep in options.sweep:
        key, values = options.points(sweep)
        for value in values:
            try:
                replace(options, **{key: value})
            except ValidationError as error:
                raise UserError(f"sweep_values: {key}={value}: {error.errors()[0]['msg']}") from None


def engine_of(name: str, say: Callable[[str], None]) -> str:
    """The rollout option, `transformers` in place of `native` where that is not there. Raises `UserError`."""
    from tpg.jobs import CONF
    from tpg.spelling import did_you_mean

    there = sorted(path.stem for path in (CONF / "rollout").glob("*.yaml"))
    if name not in there and name == "native":
        say("rollout=native is not there yet; rollout=transformers instead")
        return "transformers"
    if name not in there:
        raise UserError(f"rollout={name}: no such option; there are {', '.join(there)}{did_you_mean(name, there)}")
    return name


def device_of(wanted: Device) -> Device:
    """Where both sides run. Raises `UserError` for a GPU that there is not."""
    import torch

    if wanted == "gpu" and not torch.cuda.is_available():
        raise UserError("device=gpu: torch sees none here; use device=cpu")
    return wanted if wanted != "auto" else "gpu" if torch.cuda.is_available() else "cpu"


def new_folder(given: str | None) -> Path:
    """Where the figures go. Raises `UserError` for a folder that holds others."""
    name = f"step-{datetime.now().strftime('%Y-%m-%d_%H-%M-%S')}"
    folder = Path(given or Path("outputs") / "benchmarks" / name).absolute()
    if (folder / "step.json").exists():
        raise UserError(f"run_dir={given}: holds a step.json already; give another folder")
    return folder
