"""Say what differs between two runs: `python -m tpg.compare outputs/a outputs/b`."""

import sys

from tpg.errors import UserError, one_line

USAGE = """tpg-compare prints what differs between two runs, in their configs and in what came of them.
  python -m tpg.compare outputs/rloo-sort/<time> outputs/grpo-sort/<time>"""


def compare(arguments: list[str]) -> None:
    """Read two folders and print. Raises `UserError` unless there are two runs."""
    from rich.console import Console

    from tpg.reporting.comparing.comparison import print_comparison
    from tpg.reporting.comparing.runs import open_run

    if len(arguments) != 2:
        raise UserError(f"expected the folders of two runs, got {len(arguments)}; e.g. python -m tpg.compare a b")
    (a, notes_a), (b, notes_b) = map(open_run, arguments)
    for note in [*notes_a, *notes_b]:
        print(f"note: {note}", file=sys.stderr)
    console = Console(width=None if Console().is_terminal else 120, highlight=False)
    for letter, run in zip("ab", (a, b), strict=True):
        console.print(f"[bold]{letter}[/bold]", run.place, soft_wrap=True)
    print_comparison(a, b, console)


def main() -> None:
    """The console script tpg-compare."""
    arguments = sys.argv[1:]
    if {"-h", "--help"} & set(arguments):
        print(USAGE)
        return
    try:
        compare(arguments)
    except UserError as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
