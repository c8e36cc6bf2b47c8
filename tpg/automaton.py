"""Look at an automaton before it rewards: `python -m tpg.automaton path=mine.yaml picture=mine.png`. See `--help`."""

from pathlib import Path

import hydra
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from tpg.errors import UserError, one_line
from tpg.jobs.configs import CONF
from tpg.jobs.entry import reported, run_entry
from tpg.rewards.automaton.machine import Automaton
from tpg.rewards.automaton.reading import read_automaton


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="automaton")
def job(config: DictConfig) -> float:
    """Print and draw; returns the start's distance from acceptance."""
    return reported(look, config)


def look(config: DictConfig) -> float:
    """What `job` does, mistakes raised."""
    if OmegaConf.is_missing(config, "path"):
        raise UserError("path: has no value and needs one; set path=mine.yaml")
    automaton = read_automaton(str(config.path), "path")
    console = Console(highlight=False)
    console.print(table(automaton))
    if config.text is not None:
        text = str(config.text)
        states = " -> ".join(automaton.path(text))
        console.print(
            f"events: {', '.join(automaton.happening(text)) or 'none'}", f"states: {states}", sep="\n", markup=False
        )
        console.print(f"progress: {automaton.progress(text):.4f}")
    if config.picture is not None:
        _draw(automaton, Path(str(config.picture)).expanduser(), Path(str(config.path)).name)
        console.print(f"picture: {config.picture}", markup=False)
    return float(automaton.distances[automaton.start])


def table(automaton: Automaton) -> Table:
    """The states, the farthest from acceptance first, and where events lead from each."""
    made = Table()
    for column in ("state", "distance", "events"):
        made.add_column(column, justify="right" if column == "distance" else "left", overflow="fold")
    far = len(automaton.states)
    for state in sorted(automaton.states, key=lambda state: -automaton.distances.get(state, far)):
        kinds = {"start": state == automaton.start, "accepting": state in automaton.accepting}
        told = ", ".join([state, *(kind for kind, holds in kinds.items() if holds)])
        leads = ", ".join(f"{event} -> {after}" for event, after in automaton.transitions.get(state, {}).items())
        made.add_row(escape(told), str(automaton.distances.get(state, "never")), escape(leads))
    return made


def _draw(automaton: Automaton, path: Path, title: str) -> None:
    from tpg.reporting.automaton_picture import draw_automaton

    if path.suffix != ".png":
        raise UserError(f"picture={path}: should end in .png")
    try:
        draw_automaton(path, title, automaton.transitions, automaton.distances, automaton.start, automaton.accepting)
    except OSError as error:
        raise UserError(f"picture={path}: cannot be written: {one_line(error)}") from error


def main() -> None:
    """The console script tpg-automaton."""
    run_entry(job)


if __name__ == "__main__":
    main()
