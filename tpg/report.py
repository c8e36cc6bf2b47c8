"""Say what runs have shown: `python -m tpg.report runs=outputs/sweep/<time>`. See `--help`."""

import glob
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import hydra
from omegaconf import DictConfig

from tpg.errors import UserError
from tpg.jobs.configs import CONF
from tpg.jobs.entry import reported, run_entry

if TYPE_CHECKING:
    from tpg.reporting.comparing.options import ReportOptions
    from tpg.reporting.comparing.runs import Found


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="report")
def job(config: DictConfig) -> float:
    """Read, compare, write; returns the best method's final reward."""
    return reported(report, config)


def report(config: DictConfig) -> float:
    """What `job` does, mistakes raised."""
    from tpg.composition import built
    from tpg.reporting.comparing.analysis import analyse
    from tpg.reporting.comparing.options import ReportOptions
    from tpg.reporting.comparing.page import headline, write_report

    options = built(config, ReportOptions)
    if not options.places:
        raise UserError("runs: names no folder")
    found = _found(options)
    made = analyse(found, options)
    for note in [*found.notes, *(f"{run} is left out" for run in made.left_out)]:
        print(f"note: {note}", file=sys.stderr)
    folder = Path(options.report_dir) if options.report_dir is not None else _beside(options.places)
    try:
        written = write_report(made, folder, f"tpg report: {', '.join(options.places)}")
    except OSError as error:
        raise UserError(f"report_dir={folder}: cannot be written: {error.strerror}") from error
    print(headline(made))
    for concern in made.concerns:
        print(f"warning: {concern.title}: {len(concern.runs)} of {len(made.runs)} runs")
    print("\n".join(str(path) for path in written))
    best = made.methods[0].performance
    return best.mean.value if best else float("nan")


def _found(options: "ReportOptions") -> "Found":
    from tpg.reporting.comparing.runs import Found, find_runs
    from tpg.reporting.comparing.wandb_runs import PREFIX, find_wandb_runs

    local = [place for place in options.places if not place.startswith(PREFIX)]
    parts = [find_runs(local)] if local else []
    parts += [find_wandb_runs(place) for place in options.places if place.startswith(PREFIX)]
    return Found([run for part in parts for run in part.runs], [note for part in parts for note in part.notes])


def _beside(places: list[str]) -> Path:
    """`report` in the folder that holds all places; in outputs for what is not on disk."""
    folders = [Path(each).absolute() for place in places for each in glob.glob(place) or [place] if Path(each).is_dir()]
    parent = Path(os.path.commonpath(folders)) if folders else Path("outputs").absolute()
    return (parent.relative_to(Path.cwd()) if parent.is_relative_to(Path.cwd()) else parent) / "report"


def main() -> None:
    """The console script tpg-report."""
    run_entry(job)


if __name__ == "__main__":
    main()
