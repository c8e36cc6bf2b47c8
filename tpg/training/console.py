"""How a run speaks on the screen."""

from rich.console import Console
from rich.markup import escape


def warn(console: Console, message: str) -> None:
    """A warning in one line, whatever characters it holds."""
    console.print(f"[yellow]warning:[/yellow] {escape(message)}", highlight=False)
