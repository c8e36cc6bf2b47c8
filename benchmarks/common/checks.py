"""What can be wrong with a command line beyond types and ranges, found before anything is loaded."""

from datetime import datetime
from pathlib import Path
from typing import Literal

from tpg.errors import UserError

Device = Literal["auto", "cpu", "gpu"]


def engine_of(name: str) -> str:
    """The rollout option. Raises `UserError` where there is none of the name."""
    from tpg.jobs.configs import CONF
    from tpg.spelling import did_you_mean

    there = sorted(path.stem for path in (CONF / "rollout").glob("*.yaml"))
    if name not in there:
        raise UserError(f"rollout={name}: no such option; there are {', '.join(there)}{did_you_mean(name, there)}")
    return name


def device_of(wanted: Device) -> Device:
    """Where both sides run. Raises `UserError` for a GPU that there is not."""
    import torch

    if wanted == "gpu" and not torch.cuda.is_available():
        raise UserError("device=gpu: torch sees none here; use device=cpu")
    return wanted if wanted != "auto" else "gpu" if torch.cuda.is_available() else "cpu"


def free_folder(given: str | None, benchmark: str) -> Path:
    """Where the figures go. Raises `UserError` for a folder that holds others."""
    name = f"{benchmark}-{datetime.now().strftime('%Y-%m-%d_%H-%M-%S')}"
    folder = Path(given or Path("outputs") / "benchmarks" / name).absolute()
    if (folder / f"{benchmark}.json").exists():
        raise UserError(f"run_dir={given}: holds a {benchmark}.json already; give another folder")
    return folder


def new_folder(given: str | None, benchmark: str) -> Path:
    """The same, made."""
    folder = free_folder(given, benchmark)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"run_dir={given}: cannot be made: {error.strerror}") from error
    return folder
