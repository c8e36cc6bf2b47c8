"""A user's callback that fills the disk: from some moment on no file may grow beyond so many bytes."""

import os
import resource

from tpg.training.module import IterationCallback

ITERATION = 4


class FillingDisk(IterationCallback):
    """At the fourth iteration, if FULL_AT names a kind of file, that kind is the first that does not fit."""

    def on_iteration_start(self, module, iteration):
        if iteration == ITERATION and os.environ.get("FULL_AT") == "tokens":
            self._limit(3000)  # less than these take, more than what the run has said

    def on_iteration_end(self, module, iteration):
        folder = module.trainer.default_root_dir
        if iteration == ITERATION and (kind := os.environ.get("FULL_AT")) in ("metrics.csv", "completions.jsonl"):
            self._limit(os.path.getsize(os.path.join(folder, kind)))
        if iteration == ITERATION and os.environ.get("FULL_AT") == "checkpoint":
            self._limit(100_000)

    def _limit(self, size):
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
