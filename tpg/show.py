"""What single tokens weighed in a run: `python -m tpg.show run=<folder>`. See `--help`."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import hydra
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue
from pydantic import Field, ValidationError
from rich.console import Console

from tpg.component import component
from tpg.errors import UserError
from tpg.jobs.configs import CONF
from tpg.jobs.entry import reported, run_entry
from tpg.reporting.tokens.record import FILTERS, Filter, Group, Measure, counted, read_groups, recorded, scale
from tpg.reporting.tokens.view import group_view, legend
from tpg.training.run_folder import RunFolder


@component
class Show:
    """What to show of which run, as conf/show.yaml tells it."""

    run: str
    iteration: int | None = None
    prompt: int | str | None = None
    filter: Filter | None = None
    colour: Measure = "weight"
    show: Literal["text", "table"] = "text"
    limit: int | None = Field(default=3, ge=1)

    def file(self) -> Path:
        """The record of the iteration. Raises `UserError` for a run or an iteration without one."""
        try:
            files = recorded(RunFolder.opened(Path(self.run)).path)
        except UserError as error:
            raise UserError(f"run={error}") from None
        if not files:
            raise UserError(
                f"run={self.run}: holds no record of tokens: it has ended no iteration yet, is from before there were"
                " records, or was told checkpoint.recorded_responses=0"
            )
        iteration = max(files) if self.iteration is None else self.iteration
        if iteration not in files:
            raise UserError(f"iteration={iteration}: was not recorded; there are {_listed(list(files))}")
        return files[iteration]

    def groups(self, found: Sequence[Group]) -> list[Group]:
        """Those of the recorded groups that are wanted. Raises `UserError` when there is none."""
        wanted = list(found)
        among = (
            f"the {counted(len(found), 'prompt')} that iteration {found[0].iteration} recorded"
            if found
            else "no prompt"
        )
        if self.prompt is not None:
            wanted = [group for group in found if group.number == self.prompt]
            # A number beyond the last prompt is text, as in prompt=418293.
            wanted = wanted or [group for group in found if str(self.prompt) in group.prompt]
            if not wanted:
                raise UserError(f"prompt={self.prompt}: is neither the number nor in the text of any of {among}")
        if self.filter is not None:
            wanted = FILTERS[self.filter](wanted)
        if not wanted:
            of = among if self.prompt is None else f"what prompt={self.prompt} picks of {among}"
            raise UserError(f"filter={self.filter}: matches nothing in {of}")
        return wanted


def _listed(numbers: Sequence[int]) -> str:
    shown = [str(number) for number in numbers]
    return ", ".join(shown if len(shown) <= 12 else [*shown[:6], "...", *shown[-5:]])


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="show")
def job(config: DictConfig) -> float:
    """Print; returns how many prompts matched."""
    return reported(show, config)


def show(config: DictConfig) -> float:
    """What `job` does, mistakes raised."""
    options = _options(config)
    found = read_groups(options.file())
    groups = options.groups(found)
    console = Console(highlight=False)
    colours = console.color_system in ("256", "truecolor") and not console.no_color
    # One scale for all that the iteration recorded, so that a colour means the same whatever is picked.
    largest = scale(found, options.colour)
    console.print(legend(options.colour, largest, colours=colours), "", sep="\n")
    views = [group_view(g, options.colour, largest, table=options.show == "table", colours=colours) for g in groups]
    if console.is_terminal and sys.stdin.isatty() and len(views) > 1:
        page(views, console)
        return float(len(groups))
    for view in views[: options.limit]:
        console.print(view)
    left = len(views) - len(views[: options.limit])
    if left:
        console.print(f"{left} more; show them with limit=null, or pick with prompt= and filter=")
    return float(len(groups))


def page(views: Sequence[Any], console: Console) -> None:
    """One view after another, as the user asks for them."""
    place = 0
    while place < len(views):
        console.print(views[place])
        try:
            key = console.input(f"{place + 1} of {len(views)}: Enter or n next, p previous, q quit: ").strip().lower()
        except (EOFError, KeyboardInterrupt):
            console.print()
            return
        if key.startswith("q"):
            return
        place = max(0, place - 1) if key.startswith("p") else place + 1


def _options(config: DictConfig) -> Show:
    """The config as typed options. Raises `UserError` at the first mistake."""
    try:
        given: Any = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
        return Show(**given)
    except (ValidationError, MissingMandatoryValue):
        # Only a mistake pays for the seconds that this import takes.
        from tpg.composition import built

        return built(config, Show)


def main() -> None:
    """The console script tpg-show."""
    run_entry(job)


if __name__ == "__main__":
    main()
