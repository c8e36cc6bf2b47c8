"""An environment of its own for TRL, with the running torch and transformers."""

import json
import subprocess
import sys
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

from tpg.errors import UserError

TRL = "trl==1.16.0"
DEFAULT = Path(__file__).parents[1] / ".trl"


def python_with_trl(given: str | None, say: Callable[[str], None]) -> Path:
    """The interpreter that TRL's side runs on: the given one, or that of the given folder, made where it is missing.

    Raises `UserError` when it cannot be made, or cannot import TRL.
    """
    place = Path(given).expanduser().absolute() if given else DEFAULT
    if place.is_file():
        python = place
    else:
        if given and not place.exists() and place.name.startswith("python"):
            raise UserError(f"trl={given}: no such file; give a python that has TRL, or a folder")
        python = place / "bin" / "python"
        if _is_foreign(place):
            raise UserError(f"trl={given}: the folder holds something else than an environment; give another")
        if not _is_complete(place) and not (given and _imports(python)):
            _make(place, say)
    if not _imports(python):
        raise UserError(f"trl={given or place}: {python} cannot import trl; pip install {TRL} there, or leave trl= out")
    return python


def requirements() -> list[str]:
    """TRL with the versions that run here, builds left out: `2.13.0+cpu` is asked for as 2.13.0."""
    pinned = [f"{package}=={metadata.version(package).split('+')[0]}" for package in ("torch", "transformers")]
    return [TRL, *pinned]


def _is_complete(folder: Path) -> bool:
    stamp = folder / "complete.json"
    return stamp.is_file() and json.loads(stamp.read_text()) == requirements()


def _is_foreign(folder: Path) -> bool:
    return folder.is_dir() and any(folder.iterdir()) and not (folder / "pyvenv.cfg").is_file()


def _make(folder: Path, say: Callable[[str], None]) -> None:
    wanted = requirements()
    say(f"making an environment for TRL in {folder}: {' '.join(wanted)} (minutes, once)")
    _run([sys.executable, "-m", "venv", str(folder)])
    _run([str(folder / "bin" / "python"), "-m", "pip", "install", "--disable-pip-version-check", "--quiet", *wanted])
    (folder / "complete.json").write_text(json.dumps(wanted) + "\n")
    say("TRL's environment is ready")


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        last = (done.stderr.strip() or done.stdout.strip() or "no output").splitlines()[-1]
        raise UserError(f"trl: `{' '.join(command)}` failed: {last}")


def _imports(python: Path) -> bool:
    try:
        done = subprocess.run([str(python), "-c", "import trl, transformers, torch"], capture_output=True)
    except OSError:
        return False
    return done.returncode == 0
