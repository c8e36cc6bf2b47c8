"""The worker's end of the conversation: the learning task in, then an iteration whenever one is asked for."""

from collections.abc import Callable

from benchmarks.common import protocol
from benchmarks.curves.task import LearningTask


def served(work: Callable[[LearningTask, protocol.Channel], None]) -> None:
    """See `protocol.served`."""
    protocol.served(work, LearningTask.from_json)
