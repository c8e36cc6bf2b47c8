"""What a user can put right is told in one line."""


class UserError(Exception):
    """A mistake in the user's input; the message is one line that names the key and the remedy."""


class Interrupted(Exception):  # noqa: N818
    """The run was asked to stop (SIGTERM, SIGINT) at a point where the policy stands on an iteration boundary."""
