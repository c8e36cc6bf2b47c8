"""What a user can put right is told in one line."""


def one_line(message: object) -> str:
    """What an error or a program says, without line breaks and runs of blanks."""
    return " ".join(str(message).split())


def with_kind(error: BaseException) -> str:
    """An error in one line that begins with its kind."""
    return one_line(f"{type(error).__name__}: {error}")


class UserError(Exception):
    """A mistake in the user's input; the message is one line that names the key and the remedy."""


class Interrupted(Exception):  # noqa: N818
    """The run was asked to stop by a signal, whose number it carries (SIGTERM, SIGINT)."""


class RankFailed(Exception):  # noqa: N818
    """One of a run's processes failed or was killed; a note holds its traceback, if it left one."""
