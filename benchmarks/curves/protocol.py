"""The worker's end of the conversation: the learning task in, then an iteration whenever one is asked for."""

import sys
import traceback
from collections.abc import Callable

from benchmarks.common.protocol import Channel, Stopped
from benchmarks.curves.task import LearningTask


def served(work: Callable[[LearningTask, Channel], None]) -> None:
    """Run a worker until it is stopped; an exception is told in its answer and in its log."""
    channel = Channel()
    try:
        work(LearningTask.from_json(sys.stdin.readline()), channel)
    except Stopped:
        pass
    except Exception as error:
        traceback.print_exc()
        channel.answer(error=" ".join(f"{type(error).__name__}: {error}".split())[:500])
        sys.exit(1)
